(* Section 6: when a single hop survives a merge, and when answering in two steps
   composes what no label-blind merge composes in one.

   Adapter 1 stores K facts x_i -> y_(s i), adapter 2 stores y_j -> z_j; they are
   added with weights al and be.  Both know their own prompts exactly; on a prompt of
   the other hop an adapter adds the leak l to each of its K answers, the same on all
   (eq. 25): l = k / sg, with k the overlap of prompts of different hops and sg the row
   sums of the Gram matrix of one hop.  In the limit l = (1/pi) / (1 + kappa(1/2) (K-1)). *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers.
From LoRA Require Import MergeRules OneFactMerging ManyFacts LinearComposes.
From LoRA Require Import Relabelling LabelBlindRules Arrow.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Survive.
Variables (R : realFieldType) (n m : nat).
Notation oh := (oh R).

(* Contrast with [sum_merge_breaks_one_hop]: as an answer (argmax) the one-hop prompt
   an adapter was trained on survives the sum as long as the overlap is below one. *)
Theorem one_hop_survives (W : 'M[R]_(n, m)) (v1 v2 : 'cV[R]_m) (y y0 z a : 'I_n) :
  v1 != 0 -> W *m v1 = oh y0 -> y != z -> y != a -> `|coef v2 v1| < 1 ->
  top1 ((W + rk1 (oh y - oh y0) v1 + rk1 (oh z - oh a) v2) *m v1) y.
Proof.
move=> v10 Wv yz ya; rewrite ltr_norml => /andP[c1 c2]; apply/top1P => j jy.
rewrite theorem2_output Wv {1 3}/coef -/(sqF v1) divff ?sqF_eq0 // scale1r.
rewrite ![oh y0 + _]addrC !subrK !addcE !scalecE !subcE !ohE eqxx (negbTE yz).
rewrite (negbTE ya) subrr mulr0 addr0 (negbTE jy) add0r.
case: (j == z); case: (j == a); rewrite ?subrr ?subr0 ?sub0r ?mulr0 ?mulr1 ?ltr01 //.
by rewrite mulrN1 ltr_oppl.
Qed.

(* ---- one hop, K facts: y, y0 new and old answer of this prompt; z, a those of the
        other adapter, which leaks l onto each of them --------------------------- *)
Variable K : nat.
Variables (z a : 'I_K -> 'I_n).
Hypotheses (K0 : (0 < K)%N) (zI : injective z) (za : forall i j, z i != a j).

Lemma leaked_at_z (l : R) j :
  (l *: (targets R z a *m const_mx 1) : 'cV[R]_n) (z j) 0 = l.
Proof.
rewrite scalecE mxE (eq_bigr (fun i => (j == i)%:R * 1)) => [|i _].
  by rewrite sum_delta mulr1.
by rewrite targetsE // [const_mx _ _ _]mxE.
Qed.

Lemma leaked_at_a (l : R) j : injective a ->
  (l *: (targets R z a *m const_mx 1) : 'cV[R]_n) (a j) 0 = - l.
Proof.
move=> aI; rewrite scalecE targets_apply big1 => [|i _]; last first.
  by rewrite eq_sym (negbTE (za i j)) mul0r.
rewrite (eq_bigr (fun i => (j == i)%:R * 1)) => [|i _]; last by rewrite (inj_eq aI) mxE.
by rewrite sum_delta sub0r mulrN mulr1.
Qed.

Lemma leaked_elsewhere (l : R) e : 0 <= l -> (forall j, e != z j) ->
  (l *: (targets R z a *m const_mx 1) : 'cV[R]_n) e 0 <= 0.
Proof.
move=> l0 ez; rewrite scalecE targets_apply big1 => [|j _]; last first.
  by rewrite (negbTE (ez j)) mul0r.
rewrite sub0r mulrN oppr_le0 mulr_ge0 //; apply: sumr_ge0 => j _.
by rewrite mulr_ge0 ?ler0n // mxE ler01.
Qed.

Lemma leaked_nowhere (l : R) e : (forall j, e != z j) -> (forall j, e != a j) ->
  (l *: (targets R z a *m const_mx 1) : 'cV[R]_n) e 0 = 0.
Proof.
move=> ez ea; rewrite scalecE targets_apply !big1 ?subr0 ?mulr0 // => j _.
  by rewrite (negbTE (ea j)) mul0r.
by rewrite (negbTE (ez j)) mul0r.
Qed.

(* KNOWN fact: the new answer wins iff its weight exceeds 1/2 and the size of what leaks:
   a leak below zero lifts the other adapter's old answers.  Where two of these are the
   same, they are lifted twice, so a leak below zero asks for different ones. *)
Theorem known_hop_survives_iff (W D1 D2 : 'M[R]_(n, m)) (f : 'cV[R]_m) (y y0 : 'I_n)
    (al be l : R) :
  y != y0 -> (forall j, y != z j) -> (forall j, y != a j) ->
  (forall j, y0 != z j) -> (forall j, y0 != a j) ->
  W *m f = oh y0 -> D1 *m f = oh y - oh y0 ->
  D2 *m f = l *: (targets R z a *m const_mx 1) -> 0 <= be * l \/ injective a ->
  top1 ((W + (al *: D1 + be *: D2)) *m f) y = (1 < 2%:R * al) && (`|be * l| < al).
Proof.
move=> yy0 yz ya y0z y0a Wf D1f D2f sign.
have O e : ((W + (al *: D1 + be *: D2)) *m f) e 0 = (e == y0)%:R
    + al * ((e == y)%:R - (e == y0)%:R)
    + ((be * l) *: (targets R z a *m const_mx 1) : 'cV[R]_n) e 0.
  rewrite !mulmxDl Wf -![_ *: _ *m f]scalemxAl D1f D2f scalerA !addcE !addrA.
  by rewrite scalecE subcE !ohE.
have Oy : ((W + (al *: D1 + be *: D2)) *m f) y 0 = al.
  by rewrite O eqxx (negbTE yy0) leaked_nowhere // add0r addr0 subr0 mulr1.
apply/top1P/andP => [top|[half leak] e ey].
  split.
    have := top y0; rewrite eq_sym yy0 => /(_ isT); rewrite Oy O eqxx eq_sym (negbTE yy0).
    rewrite leaked_nowhere // addr0 sub0r mulrN1 ltr_subl_addr.
    by rewrite mulr2n mulrDl !mul1r.
  have up : be * l < al.
    have := top (z (Ordinal K0)); rewrite eq_sym yz => /(_ isT).
    rewrite Oy O leaked_at_z [z _ == y0]eq_sym [z _ == y]eq_sym.
    by rewrite (negbTE (y0z _)) (negbTE (yz _)) subrr mulr0 !add0r.
  rewrite ltr_norml up andbT; case: sign => [bl0|aI].
    by apply: (lt_le_trans _ bl0); rewrite oppr_lt0; apply: (le_lt_trans bl0).
  have := top (a (Ordinal K0)); rewrite eq_sym ya => /(_ isT).
  rewrite Oy O leaked_at_a // [a _ == y0]eq_sym [a _ == y]eq_sym.
  by rewrite (negbTE (y0a _)) (negbTE (ya _)) subrr mulr0 !add0r ltr_oppl.
have al0 : 0 < al by apply: le_lt_trans leak.
rewrite Oy O (negbTE ey) sub0r.
have [->|ey0] := eqVneq e y0.
  rewrite leaked_nowhere // addr0 mulrN1 ltr_subl_addr.
  by move: half; rewrite mulr2n mulrDl !mul1r.
rewrite oppr0 mulr0 !add0r.
have [j /eqP ->|nz] := pickP (fun j => e == z j).
  by rewrite leaked_at_z; apply: le_lt_trans leak; apply: ler_norm.
have nz' j : e != z j by rewrite nz.
case: sign => [bl0|aI].
  by apply: (le_lt_trans _ al0); apply: leaked_elsewhere.
have [j /eqP ->|na] := pickP (fun j => e == a j).
  by rewrite leaked_at_a //; apply: le_lt_trans leak; rewrite -normrN; apply: ler_norm.
by rewrite leaked_nowhere // => j; rewrite na.
Qed.

(* FRESH fact: what leaks is the only rival, and where it is below zero, every answer that
   neither adapter holds, at zero. *)
Theorem fresh_hop_survives_iff (W D1 D2 : 'M[R]_(n, m)) (f : 'cV[R]_m) (y : 'I_n)
    (al be l : R) :
  (forall j, y != z j) -> W *m f = 0 -> D1 *m f = oh y ->
  D2 *m f = l *: (words R z *m const_mx 1) ->
  0 <= be * l \/ (exists2 e, e != y & forall j, e != z j) ->
  top1 ((W + (al *: D1 + be *: D2)) *m f) y = (0 < al) && (be * l < al).
Proof.
move=> yz Wf D1f D2f sign.
have O e : ((W + (al *: D1 + be *: D2)) *m f) e 0 =
    al * (e == y)%:R + be * l * (words R z *m const_mx 1 : 'cV[R]_n) e 0.
  rewrite !mulmxDl Wf add0r -![_ *: _ *m f]scalemxAl D1f D2f scalerA !addcE.
  by rewrite !scalecE ohE.
have Z j : (words R z *m const_mx 1 : 'cV[R]_n) (z j) 0 = 1.
  by rewrite words_at // mxE.
have N e : (forall j, e != z j) -> (words R z *m const_mx 1 : 'cV[R]_n) e 0 = 0.
  by move=> ez; rewrite words_off.
have Oy : ((W + (al *: D1 + be *: D2)) *m f) y 0 = al.
  by rewrite O eqxx N // mulr0 addr0 mulr1.
apply/top1P/andP => [top|[al0 leak] e ey].
  have up : be * l < al.
    have := top (z (Ordinal K0)); rewrite eq_sym yz => /(_ isT).
    by rewrite Oy O Z [z _ == y]eq_sym (negbTE (yz _)) mulr0 add0r mulr1.
  split=> //; case: sign => [bl0|[e ey ez]]; first exact: (le_lt_trans bl0).
  by have := top e ey; rewrite Oy O (negbTE ey) N // !mulr0 addr0.
rewrite Oy O (negbTE ey) mulr0 add0r.
have [j /eqP ->|nz] := pickP (fun j => e == z j); first by rewrite Z mulr1.
by rewrite N ?mulr0 // => j; rewrite nz.
Qed.

End Survive.

(* ---- two steps -------------------------------------------------------------- *)
Section TwoSteps.
Variables (R : realFieldType) (n m K : nat).
Notation oh := (oh R).

(* Answer f1, then ask `ask y` for the answer y: the one place where a label becomes
   an input.  Right if that gives z. *)
Definition answers_in_two_steps (M : 'M[R]_(n, m)) (f1 : 'cV[R]_m)
    (ask : 'I_n -> 'cV[R]_m) (z : 'I_n) : Prop :=
  exists2 y, top1 (M *m f1) y & top1 (M *m ask y) z.

Variables (W : 'M[R]_(n, m)) (F1 F2 : 'M[R]_(m, K)) (ask : 'I_n -> 'cV[R]_m).
Variables (y y0 z a : 'I_K -> 'I_n) (k sg : R).
Hypotheses (yI : injective y) (zI : injective z).
Hypothesis asks : forall j, ask (y j) = col j F2.      (* the prompt y_j R2 *)
Hypotheses (gu1 : gram F1 \in unitmx) (gu2 : gram F2 \in unitmx) (sg0 : sg != 0).
Hypothesis rows1 : gram F1 *m const_mx 1 = sg *: const_mx 1 :> 'cV[R]_K.
Hypothesis rows2 : gram F2 *m const_mx 1 = sg *: const_mx 1 :> 'cV[R]_K.
Hypothesis across : F1^T *m F2 = const_mx k.
Implicit Types s : 'S_K.
Notation leak := (k / sg).

Lemma own_prompt (F : 'M[R]_(m, K)) (T : 'M[R]_(n, K)) i : gram F \in unitmx ->
  edit F T *m col i F = col i T.
Proof. by move=> gu; rewrite !colE mulmxA edit_feasible. Qed.

Lemma leak_onto_hop1 (T : 'M[R]_(n, K)) i :
  edit F2 T *m col i F1 = leak *: (T *m const_mx 1).
Proof.
apply: eq25 => //; rewrite colE mulmxA -[F2^T *m F1]trmxK trmx_mul trmxK across.
apply/colP => j; rewrite mxE (bigD1 i) //= big1 => [|j' /negbTE ji].
  by rewrite !mxE !eqxx addr0.
by rewrite !mxE ji mulr0.
Qed.

Lemma leak_onto_hop2 (T : 'M[R]_(n, K)) j :
  edit F1 T *m col j F2 = leak *: (T *m const_mx 1).
Proof.
apply: eq25 => //; rewrite colE mulmxA across.
apply/colP => j'; rewrite mxE (bigD1 j) //= big1 => [|i /negbTE ij].
  by rewrite !mxE !eqxx addr0.
by rewrite !mxE ij mulr0.
Qed.

Lemma col_targets (p q : 'I_K -> 'I_n) i : col i (targets R p q) = oh (p i) - oh (q i).
Proof. by apply/colP => e; rewrite !mxE !andbT. Qed.

Lemma col_words (p : 'I_K -> 'I_n) i : col i (words R p) = oh (p i).
Proof. by apply/colP => e; rewrite !mxE andbT. Qed.

(* KNOWN facts.  The condition is the same for every relabelling s, and so is the
   success: what never_right_for_all_labels forbids in one step. *)
Theorem two_steps_known (al be : R) :
  (0 < K)%N -> (forall i j, y i != y0 j) -> (forall i j, z i != a j) ->
  (forall i j, y i != z j) -> (forall i j, y i != a j) ->
  (forall i j, y0 i != z j) -> (forall i j, y0 i != a j) ->
  (forall i, W *m col i F1 = oh (y0 i)) -> (forall j, W *m col j F2 = oh (a j)) ->
  0 <= leak -> 1 < 2%:R * al -> 1 < 2%:R * be -> be * leak < al -> al * leak < be ->
  forall s i, answers_in_two_steps
    (W + (al *: edit F1 (targets R (y \o s) y0) + be *: edit F2 (targets R z a)))
    (col i F1) ask (z (s i)).
Proof.
move=> K0 yy0 za yz ya y0z y0a W1 W2 l0 al2 be2 bl_al al_be s i.
have two : 0 < 2%:R :> R by rewrite ltr0n.
have al0 : 0 <= al by rewrite -(pmulr_rge0 _ two) (le_trans ler01) // ltW.
have be0 : 0 <= be by rewrite -(pmulr_rge0 _ two) (le_trans ler01) // ltW.
exists (y (s i)).
  rewrite (@known_hop_survives_iff _ _ _ _ z a K0 zI za _ _ _ _ (y (s i)) (y0 i) al be leak)
    ?al2 ?(ger0_norm (mulr_ge0 be0 l0)) ?bl_al //; last by left; apply: mulr_ge0.
    by rewrite own_prompt // col_targets.
  exact: leak_onto_hop1.
rewrite asks [_ *: edit F1 _ + _]addrC.
have ysI : injective (y \o s) by move=> i1 i2 /yI /perm_inj.
rewrite (@known_hop_survives_iff _ _ _ _ (y \o s) y0 K0 ysI _ _ _ _ _ (z (s i)) (a (s i)) be al leak)
  ?be2 ?(ger0_norm (mulr_ge0 al0 l0)) ?al_be //.
- by move=> i1 i2; apply: yy0.
- by move=> j /=; rewrite eq_sym.
- by move=> j; rewrite eq_sym.
- by move=> j /=; rewrite eq_sym.
- by move=> j; rewrite eq_sym.
- by rewrite own_prompt // col_targets.
- exact: leak_onto_hop2.
by left; apply: mulr_ge0.
Qed.

(* FRESH facts. *)
Theorem two_steps_fresh (al be : R) :
  (0 < K)%N -> (forall i j, y i != z j) ->
  (forall i, W *m col i F1 = 0) -> (forall j, W *m col j F2 = 0) ->
  0 <= leak -> 0 <= al -> 0 <= be -> be * leak < al -> al * leak < be ->
  forall s i, answers_in_two_steps
    (W + (al *: edit F1 (words R (y \o s)) + be *: edit F2 (words R z)))
    (col i F1) ask (z (s i)).
Proof.
move=> K0 yz W1 W2 l0 al0 be0 bl_al al_be s i.
exists (y (s i)).
  rewrite (@fresh_hop_survives_iff _ _ _ _ z K0 zI _ _ _ _ (y (s i)) al be leak) //.
  - by rewrite bl_al andbT; apply: (le_lt_trans (mulr_ge0 be0 l0)).
  - by rewrite own_prompt // col_words.
  - exact: leak_onto_hop1.
  by left; apply: mulr_ge0.
rewrite asks [_ *: edit F1 _ + _]addrC.
have ysI : injective (y \o s) by move=> i1 i2 /yI /perm_inj.
rewrite (@fresh_hop_survives_iff _ _ _ _ (y \o s) K0 ysI _ _ _ _ (z (s i)) be al leak) //.
- by rewrite al_be andbT; apply: (le_lt_trans (mulr_ge0 al0 l0)).
- by move=> j /=; rewrite eq_sym.
- by rewrite own_prompt // col_words.
- exact: leak_onto_hop2.
by left; apply: mulr_ge0.
Qed.

End TwoSteps.

(* ---- Uniform: on the edge or under it ------------------------------------------ *)
Section Uniform.
Variables (R : realFieldType) (n m s : nat).
Notation oh := (oh R).
Notation half := (2%:R^-1 : R).

Lemma half_half : half + half = 1.
Proof. by rewrite -mulr2n -(mulr_natr half) mulVf ?pnatr_eq0. Qed.

(* Mean of products, known fact: new and old answer tie at exactly 1/2. *)
Theorem uniform_products_tie (W D1 D2 : 'M[R]_(n, m)) (f : 'cV[R]_m) (y y0 : 'I_n) :
  y != y0 -> W *m f = oh y0 -> D1 *m f = oh y - oh y0 ->
  (forall j, D2 y j = 0) -> (forall j, D2 y0 j = 0) ->
  let o := (W + (half *: D1 + half *: D2)) *m f in
  [/\ o y 0 = half, o y0 0 = half & ~~ top1 o y].
Proof.
move=> yy0 Wf D1f D2y D2y0 o.
have Z e : (forall j, D2 e j = 0) -> (D2 *m f) e 0 = 0.
  by move=> h; rewrite mxE big1 // => j _; rewrite h mul0r.
have O e : (forall j, D2 e j = 0) ->
    o e 0 = (e == y0)%:R + half * ((e == y)%:R - (e == y0)%:R).
  move=> h; rewrite /o !mulmxDl Wf -![_ *: _ *m f]scalemxAl D1f !addcE !scalecE Z //.
  by rewrite mulr0 addr0 subcE !ohE.
have oy : o y 0 = half by rewrite O // eqxx (negbTE yy0) add0r subr0 mulr1.
have oy0 : o y0 0 = half.
  rewrite O // eqxx eq_sym (negbTE yy0) sub0r mulrN1.
  by rewrite -[X in X - _]half_half addrK.
split=> //; apply/negP => /top1P /(_ y0); rewrite eq_sym yy0 => /(_ isT).
by rewrite oy oy0 ltxx.
Qed.

(* Mean of factors (eq. 27 at 1/2, 1/2), known fact: of its own term a quarter is left.
   The new answer does not beat the old one unless the cross term B1 A2^T f makes up for
   two of the missing units; in a gauge where it sends at most 1 either way, it is never
   on top, and where it sends less, it is strictly below. *)
Theorem uniform_factors_below (W : 'M[R]_(n, m)) (B1 B2 : 'M[R]_(n, s)) (A1 A2 : 'M[R]_(m, s))
    (f : 'cV[R]_m) (y y0 : 'I_n) :
  y != y0 -> W *m f = oh y0 -> B1 *m A1^T *m f = oh y - oh y0 ->
  (forall j, B2 y j = 0) -> (forall j, B2 y0 j = 0) ->
  let o := (W + lin half half B1 A1 B2 A2) *m f in
  let cross := B1 *m A2^T *m f in
  (o y 0 < o y0 0) = (cross y 0 - cross y0 0 < 2%:R) /\
  (cross y 0 <= 1 -> -1 <= cross y0 0 -> ~~ top1 o y).
Proof.
move=> yy0 Wf own B2y B2y0 o cross.
have Z (u : 'cV[R]_s) e : (forall j, B2 e j = 0) -> (B2 *m u) e 0 = 0.
  by move=> h; rewrite mxE big1 // => j _; rewrite h mul0r.
have O e : (forall j, B2 e j = 0) ->
    o e 0 = (e == y0)%:R + half ^+ 2 * ((e == y)%:R - (e == y0)%:R + cross e 0).
  move=> h; rewrite /o mulmxDl Wf lin_expand /cat !mulmxDl.
  rewrite -![_ *: _ *m f]scalemxAl own !addcE !scalecE mulmxDl addcE.
  rewrite -[B2 *m A2^T *m f]mulmxA -[B2 *m A1^T *m f]mulmxA -/cross addcE !Z //.
  rewrite [(- oh y0) e 0]mxE !ohE.
  by move: (e == y0)%:R (e == y)%:R (cross e 0) half => p q c hf; ring.
have oy : o y 0 = half ^+ 2 * (1 + cross y 0).
  by rewrite O // eqxx (negbTE yy0) add0r subr0.
have oy0 : o y0 0 = 1 + half ^+ 2 * (cross y0 0 - 1).
  by rewrite O // eqxx eq_sym (negbTE yy0) sub0r addrC [-1 + _]addrC addrC.
have h4 : half ^+ 2 * 4%:R = 1.
  by rewrite (natrM _ 2 2) -expr2 -exprMn mulVf ?expr1n ?pnatr_eq0.
have d : o y0 0 - o y 0 = half ^+ 2 * (2%:R - (cross y 0 - cross y0 0)).
  rewrite oy (_ : o y0 0 = half ^+ 2 * 4%:R + half ^+ 2 * (cross y0 0 - 1)); last by rewrite h4.
  by move: half (cross y 0) (cross y0 0) => hf c c0; ring.
have hp : 0 < half ^+ 2 by rewrite exprn_gt0 // invr_gt0 ltr0n.
split; first by rewrite -subr_gt0 d pmulr_rgt0 // subr_gt0.
move=> c1 c0; apply/negP => /top1P /(_ y0); rewrite eq_sym yy0 => /(_ isT).
rewrite -subr_lt0 d ltNge pmulr_rge0 // subr_ge0 => /negP; apply.
by rewrite (_ : 2%:R = 1 + 1) ?ler_add // ler_oppl.
Qed.

(* One fact for each adapter, in the gauges t1, t2: the cross term is t1 / t2 times
   the overlap of the two prompts. *)
Corollary uniform_factors_one_fact (W : 'M[R]_(n, m)) (v1 v2 : 'cV[R]_m) (y y0 z a : 'I_n)
    (t1 t2 : R) :
  v1 != 0 -> t1 != 0 -> t2 != 0 -> W *m v1 = oh y0 -> y != y0 ->
  [&& y != z & y != a] -> [&& y0 != z & y0 != a] ->
  t1 / t2 * coef v2 v1 <= 1 ->
  ~~ top1 ((W + eq28_pair half half t1 t2 (oh y - oh y0) (oh z - oh a) v1 v2) *m v1) y.
Proof.
move=> v10 t10 t20 Wf yy0 /andP[yz ya] /andP[y0z y0a] c1.
rewrite mulmxDl Wf eq28_output // /coef1; set d2 := coef2 _ _ _ _ _ _ _.
have -> : coef v1 v1 = 1 by rewrite /coef -/(sqF v1) divff ?sqF_eq0.
set d1 := half * _; rewrite addrA -/(out y0 y y0 z a d1 d2).
apply/negP => top; have := one_hop_threshold yy0 _ _ top.
rewrite yz ya y0z y0a => /(_ isT isT); rewrite ltNge => /negP; apply.
rewrite /d1 mulrA mulfV ?pnatr_eq0 // mul1r mulr1 -[leRHS]half_half ler_add2l.
by rewrite -mulrA -[leRHS]mulr1 ler_wpmul2l // invr_ge0 ler0n.
Qed.

End Uniform.
