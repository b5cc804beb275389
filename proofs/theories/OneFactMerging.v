(* Theorem 3 (6 in the appendix) for adapters with one fact each, and the
   counterexample: what CAT cannot do, linear merging can, in one of two gauges. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Facts.
Variables (R : realFieldType) (n m : nat).
Implicit Types (b y z a : 'I_n) (v f : 'cV[R]_m) (W : 'M[R]_(n, m)).

Notation oh := (oh R).

(* ---- exact one-hot versions ----------------------------------------- *)
Theorem cat_exact_fails W v1 v2 f b y y0 z a (a1 a2 : R) :
  W *m f = oh b -> y != y0 -> z != a -> y != z -> y != a -> y != b ->
  a1 != 0 -> coef v1 f != 0 ->
  (W + (a1 *: rk1 (oh y - oh y0) v1 + a2 *: rk1 (oh z - oh a) v2)) *m f <> oh z.
Proof.
move=> Wf h1 h2 h3 h4 h5 a10 c10; rewrite mulmxDl cat_rank1_shift Wf addrA.
rewrite -/(out b y y0 z a (a1 * coef v1 f) (a2 * coef v2 f)).
move=> e; have /(theorem2_output_iff _ _ h1 h2 h3 h4 h5)[/eqP] := e.
by rewrite mulf_eq0 (negbTE a10) (negbTE c10).
Qed.

(* Theorem 3, eq. 27, output vector: linear merging of two single facts is never exactly
   right, in any gauges t1, t2 and for any weights with a1 != 0. *)
Theorem lin_exact_fails W v1 v2 f b y y0 z a (a1 a2 t1 t2 : R) :
  W *m f = oh b -> y != y0 -> z != a -> y != z -> y != a -> y != b -> z != b ->
  a1 != 0 -> t1 != 0 ->
  (W + lin a1 a2 (t1 *: (oh y - oh y0)) ((t1 * sqF v1)^-1 *: v1)
                 (t2 *: (oh z - oh a)) ((t2 * sqF v2)^-1 *: v2)) *m f <> oh z.
Proof.
move=> Wf h1 h2 h3 h4 h5 zb a10 t10; rewrite mulmxDl lin_rank1_shift Wf.
set S := _ + _ / t2; rewrite scalerDr !scalerA addrA.
rewrite -/(out b y y0 z a (S * (a1 * t1)) (S * (a2 * t2))).
move=> e; have /(theorem2_output_iff _ _ h1 h2 h3 h4 h5)[/eqP] := e.
rewrite !mulf_eq0 (negbTE a10) (negbTE t10) !orbF => /eqP S0 [[/eqP]|[_ zb']].
  by rewrite S0 mul0r eq_sym oner_eq0.
by rewrite zb' eqxx in zb.
Qed.

(* ---- argmax: CAT with any weights ------------------------------------ *)
Theorem cat_efficacy_locality W v1 v2 fX fU b b' y y0 z a :
  W *m fX = oh b -> W *m fU = oh b' ->
  [/\ z != y, z != y0, z != b, z != b' & z != a] ->
  [&& b != y & b != y0] -> [&& b' != y & b' != y0] -> a != b ->
  coef v2 fX = coef v2 fU ->
  forall (a1 a2 : R) M,
  M = a1 *: rk1 (oh y - oh y0) v1 + a2 *: rk1 (oh z - oh a) v2 ->
  ~~ (top1 ((W + M) *m fX) z && top1 ((W + M) *m fU) b').
Proof.
move=> WX WU h1 h2 h3 ab ce a1 a2 M ->.
rewrite ![(W + _) *m _]mulmxDl !cat_rank1_shift WX WU !addrA.
rewrite -/(out b y y0 z a (a1 * coef v1 fX) (a2 * coef v2 fX)).
rewrite -/(out b' y y0 z a (a1 * coef v1 fU) (a2 * coef v2 fU)).
by apply: (efficacy_locality _ _ h1 h2 h3 ab); rewrite ce.
Qed.

(* ---- argmax: linear merging escapes, in the favourable gauge ---------- *)
Lemma lin_rank1_same (a1 a2 t : R) (w1 w2 : 'cV[R]_n) v1 v2 f : t != 0 ->
  lin a1 a2 (t *: w1) ((t * sqF v1)^-1 *: v1)
            (t *: w2) ((t * sqF v2)^-1 *: v2) *m f
  = (a1 * (a1 * coef v1 f + a2 * coef v2 f)) *: w1 +
    (a2 * (a1 * coef v1 f + a2 * coef v2 f)) *: w2.
Proof.
move=> t0; rewrite lin_rank1_shift scalerDr !scalerA.
by congr (_ *: _ + _ *: _); field.
Qed.

Theorem lin_escapes W v1 v2 fX fU b b' y y0 z a (a1 a2 t : R) :
  W *m fX = oh b -> W *m fU = oh b' ->
  uniq [:: b; y; y0; z; a] -> uniq [:: b'; y; y0; z; a] -> t != 0 ->
  0 <= a1 < a2 ->
  0 <= coef v1 fU -> 0 <= coef v2 fU ->
  a2 * (a1 * coef v1 fU + a2 * coef v2 fU) < 1 ->
  1 < a2 * (a1 * coef v1 fX + a2 * coef v2 fX) ->
  forall M, M = lin a1 a2 (t *: (oh y - oh y0)) ((t * sqF v1)^-1 *: v1)
                          (t *: (oh z - oh a)) ((t * sqF v2)^-1 *: v2) ->
  top1 ((W + M) *m fX) z && top1 ((W + M) *m fU) b'.
Proof.
move=> WX WU uX uU t0 /andP[a10 a12] c1 c2 ltU ltX M ->.
have a20 : 0 < a2 by apply: le_lt_trans a12.
rewrite !mulmxDl !lin_rank1_same // WX WU !addrA.
set sX := _ + a2 * coef v2 fX; set sU := _ + a2 * coef v2 fU.
have sX0 : 0 < sX by rewrite -(pmulr_rgt0 _ a20) (lt_trans ltr01).
have sU0 : 0 <= sU by rewrite addr_ge0 // mulr_ge0 // ltW.
rewrite -/(out b y y0 z a _ _) -/(out b' y y0 z a _ _) locality_iff //.
move: uX; rewrite /= !inE !negb_or.
move=> /and5P[/and4P[by_ by0 bz ba] /and3P[yy0 yz ya] /andP[y0z y0a] za _].
rewrite theorem2_answer_iff ?yz ?ya ?y0z ?y0a ?[_ == b]eq_sym ?by_ ?by0 //.
rewrite (negbTE ba) ltX andbT.
rewrite !ger0_norm ?mulr_ge0 // ?(ltW a20) ?(ltW sX0) // ltr_pmul2r // a12 ltU andbT.
by apply: le_lt_trans ltU; rewrite ler_wpmul2r // ltW.
Qed.

Lemma lin_rank1_opp (a1 a2 t : R) (w1 w2 : 'cV[R]_n) v1 v2 f : t != 0 ->
  lin a1 a2 (t *: w1) ((t * sqF v1)^-1 *: v1)
            (- t *: w2) ((- t * sqF v2)^-1 *: v2) *m f
  = (a1 * (a1 * coef v1 f - a2 * coef v2 f)) *: w1 +
    (a2 * (a2 * coef v2 f - a1 * coef v1 f)) *: w2.
Proof.
move=> t0; rewrite lin_rank1_shift scalerDr !scalerA.
have tn : - t != 0 by rewrite oppr_eq0.
by congr (_ *: _ + _ *: _); field.
Qed.

(* In the other gauge (same two adapters as matrices!) it cannot succeed. *)
Theorem lin_flipped_fails W v1 v2 fX fU b b' y y0 z a (t : R) :
  W *m fX = oh b -> W *m fU = oh b' ->
  [/\ z != y, z != y0, z != b, z != b' & z != a] ->
  [&& b != y & b != y0] -> [&& b' != y & b' != y0] -> a != b -> t != 0 ->
  coef v2 fX = coef v2 fU -> coef v1 fU <= coef v1 fX ->
  forall a1 a2 : R, 0 <= a1 -> 0 <= a2 ->
  forall M, M = lin a1 a2 (t *: (oh y - oh y0)) ((t * sqF v1)^-1 *: v1)
                          (- t *: (oh z - oh a)) ((- t * sqF v2)^-1 *: v2) ->
  ~~ (top1 ((W + M) *m fX) z && top1 ((W + M) *m fU) b').
Proof.
move=> WX WU h1 h2 h3 ab t0 ce c1 a1 a2 a10 a20 M ->.
rewrite ![(W + _) *m _]mulmxDl !lin_rank1_opp // WX WU !addrA.
rewrite -/(out b y y0 z a _ _) -/(out b' y y0 z a _ _).
apply: (efficacy_locality _ _ h1 h2 h3 ab); rewrite ce ler_wpmul2l //.
by rewrite ler_add2l ler_opp2 ler_wpmul2l.
Qed.

End Facts.

Section Witness.
Variables (R : realFieldType) (n : nat).
Notation oh := (oh R).

Let e (i : 'I_4) : 'cV[R]_4 := delta_mx i 0.

Lemma dot_e i j : dotF (e i) (e j) = (i == j)%:R.
Proof.
rewrite dotF_col (bigD1 i) //= big1 ?addr0 => [|k ki].
  by rewrite !mxE !eqxx /= andbT mul1r eq_sym.
by rewrite !mxE (negbTE ki) mul0r.
Qed.

Let i0 : 'I_4 := @Ordinal 4 0 isT.
Let i1 : 'I_4 := @Ordinal 4 1 isT.
Let i2 : 'I_4 := @Ordinal 4 2 isT.
Let i3 : 'I_4 := @Ordinal 4 3 isT.

(* The counterexample to Theorem 3: for six different labels there are a base W and
   nonnegative features on which no CAT weights are right on X and harmless on U, linear
   merging with (3/4, 7/8) is, and with adapter 2's sign flipped no weights >= 0 are. *)
Theorem cat_linear_separation (b b' y y0 z a : 'I_n) :
  uniq [:: b; b'; y; y0; z; a] ->
  exists (W : 'M[R]_(n, 4)) (v1 v2 fX fU : 'cV[R]_4),
  [/\ [/\ nonneg v1, nonneg v2, nonneg fX & nonneg fU],
      [/\ W *m v1 = oh y0, W *m v2 = oh a, W *m fX = oh b & W *m fU = oh b'],
      (* CAT / weighted sum: no weights at all *)
      (forall (a1 a2 : R) M,
        M = a1 *: rk1 (oh y - oh y0) v1 + a2 *: rk1 (oh z - oh a) v2 ->
        ~~ (top1 ((W + M) *m fX) z && top1 ((W + M) *m fU) b')),
      (* linear merging, gauge (+,+): some weights, any balanced t *)
      (exists2 a12 : R * R, 0 < a12.1 /\ 0 < a12.2 & forall t, t != 0 -> forall M,
        M = lin a12.1 a12.2 (t *: (oh y - oh y0)) ((t * sqF v1)^-1 *: v1)
                            (t *: (oh z - oh a)) ((t * sqF v2)^-1 *: v2) ->
        top1 ((W + M) *m fX) z && top1 ((W + M) *m fU) b') &
      (* linear merging, gauge (+,-): no nonnegative weights *)
      (forall (a1 a2 t : R), 0 <= a1 -> 0 <= a2 -> t != 0 -> forall M,
        M = lin a1 a2 (t *: (oh y - oh y0)) ((t * sqF v1)^-1 *: v1)
                      (- t *: (oh z - oh a)) ((- t * sqF v2)^-1 *: v2) ->
        ~~ (top1 ((W + M) *m fX) z && top1 ((W + M) *m fU) b'))].
Proof.
move=> u.
pose W := oh y0 *m (e i0)^T + oh a *m (e i1)^T
  + (oh b - oh y0 - oh a) *m (e i2)^T + (oh b' - oh a) *m (e i3)^T.
pose fX := e i0 + e i1 + e i2; pose fU := e i1 + e i3.
have We i : W *m e i = (i0 == i)%:R *: oh y0 + (i1 == i)%:R *: oh a
   + (i2 == i)%:R *: (oh b - oh y0 - oh a) + (i3 == i)%:R *: (oh b' - oh a).
  by rewrite /W mulmxDl mulmxDl mulmxDl !outer_apply !dot_e.
have W0 : W *m e i0 = oh y0 by rewrite We /= scale1r !scale0r !addr0.
have W1 : W *m e i1 = oh a by rewrite We /= scale1r !scale0r !addr0 add0r.
have WX : W *m fX = oh b.
  rewrite /fX !mulmxDr W0 W1 We /= scale1r !scale0r !add0r addr0.
  by rewrite -addrA addrC [oh a + _]addrC !subrK.
have WU : W *m fU = oh b'.
  by rewrite /fU mulmxDr W1 We /= scale1r !scale0r !add0r addrC subrK.
have se i : sqF (e i) = 1 by rewrite /sqF dot_e eqxx.
have c1X : coef (e i0) fX = 1 by rewrite /coef se /fX !dotFDr !dot_e /= !addr0 divr1.
have c2X : coef (e i1) fX = 1 by rewrite /coef se /fX !dotFDr !dot_e /= addr0 add0r divr1.
have c1U : coef (e i0) fU = 0 by rewrite /coef se /fU !dotFDr !dot_e /= addr0 mul0r.
have c2U : coef (e i1) fU = 1 by rewrite /coef se /fU !dotFDr !dot_e /= addr0 divr1.
have nne i : nonneg (e i) by move=> j; rewrite mxE ler0n.
have nnD (f g : 'cV[R]_4) : nonneg f -> nonneg g -> nonneg (f + g).
  by move=> hf hg j; rewrite mxE addr_ge0.
have := u; rewrite /= !inE !negb_or => /and5P[/and5P[bb' by_ by0 bz ba]].
move=> /and4P[b'y b'y0 b'z b'a] /and3P[yy0 yz ya] /andP[y0z y0a].
rewrite andbT => za.
have H1 : [/\ z != y, z != y0, z != b, z != b' & z != a].
  by rewrite ![z == _]eq_sym; split=> //; rewrite eq_sym.
have H2 : [&& b != y & b != y0] by rewrite by_.
have H3 : [&& b' != y & b' != y0] by rewrite b'y.
have ab : a != b by rewrite eq_sym.
exists W, (e i0), (e i1), fX, fU; split=> //.
- by split; do ?[exact: nne | apply: (nnD) | apply: nnD; exact: nne].
- by move=> a1 a2 M; apply: (cat_efficacy_locality WX WU H1 H2 H3 ab); rewrite c2X.
- exists (3%:R / 4%:R, 7%:R / 8%:R); first by rewrite !divr_gt0 ?ltr0n.
  move=> t t0 M; apply: (lin_escapes WX WU) => //; rewrite ?c1X ?c2X ?c1U ?c2U ?ler01 //=.
  + by rewrite /= !inE !negb_or by_ by0 bz ba yy0 yz ya y0z y0a za.
  + by rewrite /= !inE !negb_or b'y b'y0 b'z b'a yy0 yz ya y0z y0a za.
  + rewrite divr_ge0 ?ler0n //= ltr_pdivr_mulr ?ltr0n // mulrAC.
    by rewrite ltr_pdivl_mulr ?ltr0n // -!natrM ltr_nat.
  + rewrite mulr0 add0r mulr1 mulf_div ltr_pdivr_mulr ?mul1r -?natrM ?ltr_nat //.
    by rewrite ltr0n.
  + rewrite !mulr1 [X in _ < X](_ : _ = 91%:R / 64%:R); last by field.
    by rewrite ltr_pdivl_mulr ?mul1r ?ltr_nat ?ltr0n.
move=> a1 a2 t a10 a20 t0 M.
apply: (lin_flipped_fails WX WU H1 H2 H3 ab t0) => //.
  by rewrite c2X.
by rewrite c1X c1U ler01.
Qed.

End Witness.
