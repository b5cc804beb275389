(* Theorem 2, the answer (argmax): when the sum of two adapters answers a two-hop
   prompt, and how many of K prompts any update can answer. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Single.
Variables (R : realFieldType) (n : nat).
Implicit Types (b y z a j : 'I_n) (c : R).

(* One prompt, relation ranges disjoint ("typed": y, y0 are bridge entities,
   z, a, b are answers), old answer b <> z. *)
Theorem theorem2_answer_iff b y y0 z a c1 c2 :
  y != y0 -> z != a -> z != b ->
  [&& y != z, y != a & y != b] -> [&& y0 != z, y0 != a & y0 != b] ->
  top1 (out b y y0 z a c1 c2) z =
    (`|c1| < c2) && ((if a == b then 1 - c2 else 1) < c2).
Proof.
move=> yy0 za zb /and3P[yz ya yb] /and3P[y0z y0a y0b].
have oz : out b y y0 z a c1 c2 z 0 = c2.
  rewrite outE eqxx (negbTE zb) (negbTE za) eq_sym (negbTE yz).
  by rewrite eq_sym (negbTE y0z) !subr0 mulr0 !add0r mulr1.
have oy : out b y y0 z a c1 c2 y 0 = c1.
  rewrite outE eqxx (negbTE yb) (negbTE ya) (negbTE yz) (negbTE yy0).
  by rewrite !subr0 mulr0 add0r addr0 mulr1.
have oy0 : out b y y0 z a c1 c2 y0 0 = - c1.
  rewrite outE eqxx (negbTE y0b) (negbTE y0a) (negbTE y0z) eq_sym (negbTE yy0).
  by rewrite subr0 mulr0 add0r addr0 sub0r mulrN1.
have ob : out b y y0 z a c1 c2 b 0 = if a == b then 1 - c2 else 1.
  rewrite outE eqxx ![b == _]eq_sym (negbTE yb) (negbTE y0b) (negbTE zb) subr0.
  rewrite mulr0 addr0 sub0r mulrN; case: (a == b); first by rewrite mulr1.
  by rewrite mulr0 oppr0 addr0.
apply/top1P/andP => [h|[]].
  have bz : b != z by rewrite eq_sym.
  have := h _ bz; have := h _ yz; have := h _ y0z; rewrite oy0 oy ob oz.
  by move=> h1 h2 h3; split=> //; rewrite ltr_norml ltr_oppl h1 h2.
rewrite ltr_norml ltr_oppl => /andP[h1 h2] h3 j jz; rewrite oz.
have c2p : 0 < c2 by apply: le_lt_trans (normr_ge0 c1) _; rewrite ltr_norml ltr_oppl h1 h2.
have [->|jy] := eqVneq j y; first by rewrite oy.
have [->|jy0] := eqVneq j y0; first by rewrite oy0.
have [->|jb] := eqVneq j b; first by rewrite ob.
rewrite outE (negbTE jz) (negbTE jy) (negbTE jy0) (negbTE jb) subrr mulr0 addr0.
rewrite add0r sub0r mulrN; case: (j == a); last by rewrite mulr0 oppr0.
by rewrite mulr1 (lt_trans _ c2p) // oppr_lt0.
Qed.

(* Sum of the two adapters: with c2 <= 1 (0.57 in the paper's wide limit) the
   merged model still gives the old two-hop answer, PROVIDED r2(y) <> r2(r1 x). *)
Corollary theorem2_old_answer_stays b y y0 z a c1 c2 :
  y != y0 -> z != a -> z != b ->
  [&& y != z, y != a & y != b] -> [&& y0 != z, y0 != a & y0 != b] ->
  a != b -> c2 <= 1 -> ~~ top1 (out b y y0 z a c1 c2) z.
Proof.
move=> h1 h2 h3 h4 h5 ab c2le; rewrite theorem2_answer_iff // (negbTE ab).
by rewrite negb_and -!leNgt c2le orbT.
Qed.

(* ... and if r2(y) = r2(r1 x) it SUCCEEDS as soon as c2 > 1/2 and c2 > |c1|. *)
Corollary theorem2_coincidence b y y0 z c1 c2 :
  y != y0 -> z != b -> [&& y != z & y != b] -> [&& y0 != z & y0 != b] ->
  `|c1| < c2 -> 1 < 2%:R * c2 -> top1 (out b y y0 z b c1 c2) z.
Proof.
move=> h1 h2 /andP[h3 h4] /andP[h5 h6] lt1 lt2.
rewrite theorem2_answer_iff ?h3 ?h4 ?h5 ?h6 // eqxx lt1 /=.
by rewrite ltr_subl_addr (_ : c2 + c2 = 2%:R * c2) //; ring.
Qed.

(* NOVEL facts (base output 0 on all three prompts, e.g. r2(y) undefined): the
   sum is c1 i_y + c2 i_z and is argmax-correct exactly when 0 < c2 > c1. *)
Theorem fresh_fact_answer_iff y z c1 c2 : y != z -> (2 < n)%N ->
  top1 (c1 *: oh R y + c2 *: oh R z) z = (c1 < c2) && (0 < c2).
Proof.
move=> yz n2.
have o j : (c1 *: oh R y + c2 *: oh R z) j 0
    = c1 * (j == y)%:R + c2 * (j == z)%:R by rewrite !mxE !andbT.
have [w wy wz] : exists2 w, w != y & w != z.
  have /subsetPn[w _] : ~~ ([set: 'I_n] \subset [set y; z]).
    by apply/negP => /subset_leq_card; rewrite cardsT card_ord cards2 yz leqNgt n2.
  by rewrite !inE negb_or => /andP[? ?]; exists w.
apply/top1P/andP => [h|[h1 h2] j jz].
  have := h w wz; have := h y yz; rewrite !o !eqxx [z == y]eq_sym (negbTE yz).
  by rewrite (negbTE wy) (negbTE wz) !mulr0 !mulr1 !addr0 !add0r.
rewrite !o eqxx [z == y]eq_sym (negbTE yz) (negbTE jz) !mulr0 addr0 add0r mulr1.
by case: (j == y); rewrite ?mulr1 ?mulr0.
Qed.

(* A weight of at most 1/2 on adapter 1 (e.g. uniform averaging of two) already
   loses the edited ONE-hop fact itself: b1 is adapter 1's coefficient there. *)
Theorem one_hop_threshold y y0 z a (b1 b2 : R) :
  y != y0 -> [&& y != z & y != a] -> [&& y0 != z & y0 != a] ->
  top1 (out y0 y y0 z a b1 b2) y -> 1 < 2%:R * b1.
Proof.
move=> yy0 /andP[yz ya] /andP[y0z y0a] /top1P /(_ y0).
rewrite eq_sym yy0 !outE !eqxx [y0 == y]eq_sym (negbTE yy0) (negbTE yz).
rewrite (negbTE ya) (negbTE y0z) (negbTE y0a) !subrr !mulr0 !addr0.
rewrite subr0 sub0r mulr1 mulrN1 add0r => /(_ isT); rewrite ltr_subl_addr.
by rewrite mulr2n mulrDl !mul1r.
Qed.

(* Efficacy / locality dichotomy.  X is the edited prompt (old answer b, new
   answer z); U is another entity's two-hop prompt whose answer b' must not
   change.  If the second adapter contributes at least as much on U as on X,
   no choice of (possibly prompt dependent) coefficients is right on both. *)
Theorem efficacy_locality b b' y y0 z a (d1 d2 e1 e2 : R) :
  [/\ z != y, z != y0, z != b, z != b' & z != a] ->
  [&& b != y & b != y0] -> [&& b' != y & b' != y0] ->
  a != b -> d2 <= e2 ->
  ~~ (top1 (out b y y0 z a d1 d2) z && top1 (out b' y y0 z a e1 e2) b').
Proof.
move=> [zy zy0 zb zb' za] /andP[yb y0b] /andP[b'y b'y0] ab de.
apply/negP => /andP[/top1P hX /top1P hU].
have := hX b; rewrite eq_sym zb => /(_ isT).
rewrite !outE eqxx (negbTE yb) (negbTE y0b) [b == z]eq_sym (negbTE zb).
rewrite [b == a]eq_sym (negbTE ab) eqxx (negbTE zy) (negbTE zy0) (negbTE za).
rewrite !subrr !subr0 !mulr0 !addr0 add0r mulr1 => d21.
have := hU z zb'; rewrite !outE !eqxx (negbTE b'y) (negbTE b'y0).
rewrite [b' == z]eq_sym (negbTE zb') (negbTE zy) (negbTE zy0) (negbTE za).
rewrite !subrr !mulr0 !addr0 add0r subr0 mulr1 sub0r mulrN.
have e21 : 1 < e2 by apply: lt_le_trans de.
case: (b' == a); last by rewrite mulr0 oppr0 addr0 ltNge ltW.
rewrite mulr1 ltNge => /negP; apply; apply: le_trans (ltW e21).
by rewrite ger_addl oppr_le0 (le_trans ler01) // ltW.
Qed.

(* Quantitative form (finite width): the two margins that must be positive add
   up to the difference of the second adapter's coefficients on X and U. *)
Theorem efficacy_locality_identity b b' y y0 z a (d1 d2 e1 e2 : R) :
  [/\ z != y, z != y0, z != b, z != b' & z != a] ->
  [&& b != y & b != y0] -> [&& b' != y & b' != y0] -> a != b ->
  (out b y y0 z a d1 d2 z 0 - out b y y0 z a d1 d2 b 0) +
  (out b' y y0 z a e1 e2 b' 0 - out b' y y0 z a e1 e2 z 0) =
  d2 - e2 - (if b' == a then e2 else 0).
Proof.
move=> [zy zy0 zb zb' za] /andP[yb y0b] /andP[b'y b'y0] ab.
rewrite !outE !eqxx (negbTE zy) (negbTE zy0) (negbTE zb) (negbTE zb') (negbTE za).
rewrite (negbTE yb) (negbTE y0b) (negbTE b'y) (negbTE b'y0).
rewrite [b == z]eq_sym [b' == z]eq_sym (negbTE zb) (negbTE zb').
rewrite [b == a]eq_sym (negbTE ab).
by case: (b' == a) => /=; ring.
Qed.

(* Locality alone: an unedited entity keeps its (unrelated) answer b'. *)
Theorem locality_iff b y y0 z a (e1 e2 : R) :
  uniq [:: b; y; y0; z; a] ->
  top1 (out b y y0 z a e1 e2) b = (`|e1| < 1) && (`|e2| < 1).
Proof.
rewrite /= !inE !negb_or => /and5P[/and4P[by_ by0 bz ba] /and3P[yy0 yz ya]].
move=> /andP[y0z y0a] za _.
have o j : out b y y0 z a e1 e2 j 0 = if j == b then 1 else if j == y then e1
    else if j == y0 then - e1 else if j == z then e2 else
    if j == a then - e2 else 0.
  rewrite outE; have [->|_] := eqVneq j b.
    rewrite (negbTE by_) (negbTE by0) (negbTE bz) (negbTE ba).
    by rewrite !subrr !mulr0 !addr0.
  have [->|_] := eqVneq j y.
    rewrite (negbTE yy0) (negbTE yz) (negbTE ya).
    by rewrite !subrr subr0 mulr0 mulr1 add0r addr0.
  have [->|_] := eqVneq j y0.
    rewrite (negbTE y0z) (negbTE y0a).
    by rewrite !subrr sub0r mulr0 mulrN1 add0r addr0.
  have [->|_] := eqVneq j z.
    by rewrite (negbTE za) subrr subr0 mulr0 mulr1 !add0r.
  case: (j == a); last by rewrite !subrr !mulr0 !addr0.
  by rewrite subrr sub0r mulrN1 mulr0 !add0r.
rewrite [`|e1| < 1]ltr_norml [`|e2| < 1]ltr_norml ltr_oppl [-1 < e2]ltr_oppl.
apply/top1P/andP => [h|[/andP[h1 h2] /andP[h3 h4]] j jb].
  have := h y; rewrite !o eqxx ![y == _]eq_sym (negbTE by_) eqxx => /(_ isT) hy.
  have := h y0; rewrite !o eqxx ![y0 == _]eq_sym (negbTE by0) (negbTE yy0) eqxx.
  move=> /(_ isT) hy0.
  have := h z; rewrite !o eqxx ![z == _]eq_sym (negbTE bz) (negbTE yz).
  rewrite (negbTE y0z) eqxx => /(_ isT) hz.
  have := h a; rewrite !o eqxx ![a == _]eq_sym (negbTE ba) (negbTE ya).
  rewrite (negbTE y0a) (negbTE za) eqxx => /(_ isT) ha.
  by rewrite hy hy0 hz ha.
rewrite !o eqxx (negbTE jb) /=; do 4![case: ifP => // _].
exact: ltr01.
Qed.

(* The condition a != b of [efficacy_locality] is sharp: when
   r2(y) = r2(r1 x) plain positive coefficients do satisfy both prompts. *)
Theorem efficacy_locality_corner b b' y y0 z :
  uniq [:: b; b'; y; y0; z] ->
  top1 (out b y y0 z b (4%:R^-1 : R) (3%:R / 4%:R)) z &&
  top1 (out b' y y0 z b (4%:R^-1 : R) (3%:R / 4%:R)) b'.
Proof.
set d1 : R := 4%:R^-1; set d2 : R := 3%:R / 4%:R => u.
have := u; rewrite /= !inE !negb_or.
move=> /and5P[/and4P[bb' by_ by0 bz] /and3P[b'y b'y0 b'z] /andP[yy0 yz] y0z _].
have p4 : 0 < 4%:R :> R by rewrite ltr0n.
have d1p : `|d1| = d1 by rewrite ger0_norm // invr_ge0 ler0n.
have d2p : `|d2| = d2 by rewrite ger0_norm // divr_ge0 // ler0n.
have lt12 : d1 < d2 by rewrite /d1 /d2 -[X in X < _]mul1r ltr_pmul2r ?invr_gt0 // ltr1n.
have d21 : d2 < 1 by rewrite ltr_pdivr_mulr // mul1r ltr_nat.
have hh : 1 < 2%:R * d2.
  by rewrite /d2 mulrA ltr_pdivl_mulr // mul1r -natrM ltr_nat.
apply/andP; split.
  apply: theorem2_coincidence; rewrite ?d1p // ?yz ?y0z ?[_ == b]eq_sym //=.
rewrite locality_iff ?d1p ?d2p ?d21 ?(lt_trans lt12) //.
rewrite /= !inE !negb_or b'y b'y0 b'z eq_sym bb' yy0 yz y0z.
by rewrite ![_ == b]eq_sym by_ by0 bz.
Qed.

(* Cyclic pair r1'(x)=y, r2'(y)=x: both composition directions CAN be right at
   once under a plain rescaled sum (overlaps cs < cb of the two prompts). *)
Theorem both_directions_possible (b1 b2 x y y0 a : 'I_n) (cs cb : R) :
  uniq [:: b1; b2; x; y; y0; a] -> 0 <= cs < cb -> 1 < cb ->
  top1 (out b1 y y0 x a cs cb) x && top1 (out b2 y y0 x a cb cs) y.
Proof.
rewrite /= !inE !negb_or => /and5P[/and5P[_ b1x b1y b1y0 b1a]].
move=> /and4P[b2x b2y b2y0 b2a] /and3P[xy xy0 xa] /andP[yy0 ya] /andP[y0a _].
move=> /andP[cs0 cscb] cb1.
have outC : out b2 y y0 x a cb cs = out b2 x a y y0 cs cb.
  by rewrite /out addrAC.
have ns : `|cs| < cb by rewrite ger0_norm.
rewrite outC !theorem2_answer_iff ?ns ?[a == b1]eq_sym ?[y0 == b2]eq_sym //=;
  rewrite ?(negbTE b1a) ?(negbTE b2y0) ?cb1 //.
all: rewrite ?xy ?xa ?yy0 ?ya ?y0a ?xy0 // ?[_ == b1]eq_sym ?[_ == b2]eq_sym;
  rewrite ?b1x ?b1y ?b1y0 ?b1a ?b2x ?b2y ?b2y0 ?b2a //=.
all: rewrite ?[y == x]eq_sym ?[y0 == x]eq_sym ?[a == x]eq_sym ?[a == y]eq_sym
  ?[a == y0]eq_sym ?[y0 == y]eq_sym ?xy ?xa ?yy0 ?ya ?y0a ?xy0 //.
Qed.

End Single.

(* ------------------------------------------------------------------ *)
Section Margins.
Variables (R : realFieldType) (n m : nat).
Implicit Types (o : 'cV[R]_n) (z w : 'I_n) (f : 'cV[R]_m).

Lemma subcE (o o' : 'cV[R]_n) i : (o - o') i 0 = o i 0 - o' i 0.
Proof. by rewrite !mxE. Qed.

Definition margin o z w : R := o z 0 - o w 0.

Lemma top1_margin o z w : w != z -> top1 o z -> 0 < margin o z w.
Proof. by move=> wz /top1P /(_ w wz); rewrite subr_gt0. Qed.

(* Whatever linear update M is added, the two opposite margins on two prompts
   can only change by the difference of the shifts. *)
Theorem margin_conservation (W M : 'M[R]_(n, m)) f f' z w :
  margin ((W + M) *m f) z w + margin ((W + M) *m f') w z =
  margin (W *m f) z w + margin (W *m f') w z + margin (M *m f - M *m f') z w.
Proof. by rewrite /margin !mulmxDl !mxE; ring. Qed.

Theorem not_both_correct (W M : 'M[R]_(n, m)) f f' z w : z != w ->
  margin (W *m f) z w + margin (W *m f') w z <= 0 ->
  margin (M *m f - M *m f') z w <= 0 ->
  ~~ (top1 ((W + M) *m f) z && top1 ((W + M) *m f') w).
Proof.
move=> zw hb hs; apply/negP => /andP[tz tw].
have : 0 < margin ((W + M) *m f) z w + margin ((W + M) *m f') w z.
  by rewrite addr_gt0 // top1_margin // eq_sym.
rewrite margin_conservation ltNge => /negP; apply.
by rewrite -(addr0 0) ler_add.
Qed.

(* K edited two-hop prompts with distinct new answers, the base model giving
   old answers outside the set of new ones, and a merged update whose shift is
   the same on all prompts at the answer coordinates: at most one is right. *)
Variable K : nat.

(* Eq. 25, answers: K prompts with different right answers z_i, old answers b_i that are
   no z's; an update M that adds the same to each z_j on all of them is right on one at most. *)
Theorem at_most_one_correct (W M : 'M[R]_(n, m)) (f : 'I_K -> 'cV[R]_m)
    (b z : 'I_K -> 'I_n) :
  injective z ->
  (forall i, W *m f i = oh R (b i)) ->
  (forall i j, b i != z j) ->
  (forall i i' j, (M *m f i) (z j) 0 = (M *m f i') (z j) 0) ->
  (#|[set i | top1 ((W + M) *m f i) (z i)]| <= 1)%N.
Proof.
move=> zI hW bz hM; apply/card_le1P => i; rewrite inE => ti j; rewrite !inE.
apply/idP/eqP => [tj|-> //]; apply/eqP; apply/contraT => ji.
have zij : z i != z j by rewrite (inj_eq zI) eq_sym.
have := not_both_correct (W := W) (M := M) (f := f i) (f' := f j) zij.
rewrite ti tj /= => H; apply: H.
  by rewrite /margin !hW !ohE ![z _ == b _]eq_sym !(negbTE (bz _ _)) subrr addr0.
by rewrite /margin !subcE !(hM i j) !subrr.
Qed.

(* Robust version: with shifts equal up to eps, at least one of the two
   prompts is answered with margin at most eps. *)
Theorem margin_robust (W M : 'M[R]_(n, m)) f f' z w eps :
  margin (W *m f) z w + margin (W *m f') w z <= 0 ->
  `|(M *m f - M *m f') z 0| <= eps -> `|(M *m f - M *m f') w 0| <= eps ->
  margin ((W + M) *m f) z w <= eps \/ margin ((W + M) *m f') w z <= eps.
Proof.
move=> hb hz hw.
have [h1|h1] := leP (margin ((W + M) *m f) z w) eps; first by left.
have [h2|h2] := leP (margin ((W + M) *m f') w z) eps; first by right.
have : eps + eps < margin ((W + M) *m f) z w + margin ((W + M) *m f') w z.
  by rewrite ltr_add.
rewrite margin_conservation ltNge => /negP[]; rewrite -[_ + eps]add0r ler_add //.
rewrite ler_add //; first by rewrite (le_trans (ler_norm _)).
by rewrite (le_trans (ler_norm _)) // normrN.
Qed.

End Margins.
