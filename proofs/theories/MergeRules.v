(* The merge rules of Theorem 3: CAT (eq. 26) and linear merging (eq. 27), what
   they have in common, and which of them depend on the gauge of the factors. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Merge.
Variables (R : realFieldType) (n m : nat).

Definition cat s1 s2 (a1 a2 : R) (B1 : 'M[R]_(n, s1)) (A1 : 'M[R]_(m, s1))
    (B2 : 'M[R]_(n, s2)) (A2 : 'M[R]_(m, s2)) :=
  a1 *: (B1 *m A1^T) + a2 *: (B2 *m A2^T).

Definition lin s (a1 a2 : R) (B1 : 'M[R]_(n, s)) (A1 : 'M[R]_(m, s))
    (B2 : 'M[R]_(n, s)) (A2 : 'M[R]_(m, s)) :=
  (a1 *: B1 + a2 *: B2) *m (a1 *: A1 + a2 *: A2)^T.

(* CAT really is concatenation of the factors. *)
Theorem cat_is_concat s1 s2 a1 a2 (B1 : 'M[R]_(n, s1)) (A1 : 'M[R]_(m, s1))
    (B2 : 'M[R]_(n, s2)) (A2 : 'M[R]_(m, s2)) :
  cat a1 a2 B1 A1 B2 A2 =
  row_mx (a1 *: B1) (a2 *: B2) *m (row_mx A1 A2)^T.
Proof. by rewrite tr_row_mx mul_row_col -!scalemxAl. Qed.

Theorem lin_expand s a1 a2 (B1 : 'M[R]_(n, s)) (A1 : 'M[R]_(m, s))
    (B2 : 'M[R]_(n, s)) (A2 : 'M[R]_(m, s)) :
  lin a1 a2 B1 A1 B2 A2 =
  cat (a1 ^+ 2) (a2 ^+ 2) B1 A1 B2 A2
  + (a1 * a2) *: (B1 *m A2^T + B2 *m A1^T).
Proof.
rewrite /lin /cat linearD /= !linearZ /= mulmxDl !mulmxDr.
rewrite -!scalemxAl -!scalemxAr !scalerA -!expr2 scalerDr (mulrC a2 a1).
by rewrite -!addrA; congr (_ + _); rewrite addrA addrC.
Qed.

(* The shift always stays in the sum of the two column spaces (any rank). *)
Theorem lin_shift_span s a1 a2 (B1 : 'M[R]_(n, s)) (A1 : 'M[R]_(m, s))
    (B2 : 'M[R]_(n, s)) (A2 : 'M[R]_(m, s)) (f : 'cV[R]_m) :
  exists u1 u2 : 'cV[R]_s, lin a1 a2 B1 A1 B2 A2 *m f = B1 *m u1 + B2 *m u2.
Proof.
set u := (a1 *: A1 + a2 *: A2)^T *m f.
exists (a1 *: u), (a2 *: u).
by rewrite /lin -mulmxA -/u mulmxDl -!scalemxAl !scalemxAr.
Qed.

Theorem cat_shift_span s1 s2 a1 a2 (B1 : 'M[R]_(n, s1)) (A1 : 'M[R]_(m, s1))
    (B2 : 'M[R]_(n, s2)) (A2 : 'M[R]_(m, s2)) (f : 'cV[R]_m) :
  exists (u1 : 'cV[R]_s1) (u2 : 'cV[R]_s2),
    cat a1 a2 B1 A1 B2 A2 *m f = B1 *m u1 + B2 *m u2.
Proof.
exists (a1 *: (A1^T *m f)), (a2 *: (A2^T *m f)).
by rewrite /cat mulmxDl -!scalemxAl -!scalemxAr !mulmxA.
Qed.

(* Gauge invariance / dependence. *)
Theorem cat_gauge_invariant s1 s2 a1 a2 (B1 : 'M[R]_(n, s1)) (A1 : 'M[R]_(m, s1))
    (B2 : 'M[R]_(n, s2)) (A2 : 'M[R]_(m, s2)) (G : 'M[R]_s2) :
  G \in unitmx ->
  cat a1 a2 B1 A1 (B2 *m G) (A2 *m (invmx G)^T) = cat a1 a2 B1 A1 B2 A2.
Proof.
by move=> gu; rewrite /cat trmx_mul trmxK mulmxA -(mulmxA B2) mulmxV // mulmx1.
Qed.

(* Eq. 27, R5: flipping the sign of adapter 2's factors changes the merge by twice its
   cross terms. *)
Theorem lin_flip_diff s a1 a2 (B1 : 'M[R]_(n, s)) (A1 : 'M[R]_(m, s))
    (B2 : 'M[R]_(n, s)) (A2 : 'M[R]_(m, s)) :
  lin a1 a2 B1 A1 B2 A2 - lin a1 a2 B1 A1 (- B2) (- A2) =
  (2%:R * (a1 * a2)) *: (B1 *m A2^T + B2 *m A1^T).
Proof.
rewrite !lin_expand /cat linearN /= !mulmxN !mulNmx opprK -opprD scalerN.
rewrite opprD addrACA subrr add0r opprK -scalerDl.
by congr (_ *: _); ring.
Qed.

Theorem lin_flip_average s a1 a2 (B1 : 'M[R]_(n, s)) (A1 : 'M[R]_(m, s))
    (B2 : 'M[R]_(n, s)) (A2 : 'M[R]_(m, s)) :
  lin a1 a2 B1 A1 B2 A2 + lin a1 a2 B1 A1 (- B2) (- A2) =
  2%:R *: cat (a1 ^+ 2) (a2 ^+ 2) B1 A1 B2 A2.
Proof.
rewrite !lin_expand /cat linearN /= !mulmxN !mulNmx opprK -opprD scalerN.
by rewrite addrACA subrr addr0 scaler_nat mulr2n.
Qed.

Theorem lin_scale s a1 a2 t (B1 : 'M[R]_(n, s)) (A1 : 'M[R]_(m, s))
    (B2 : 'M[R]_(n, s)) (A2 : 'M[R]_(m, s)) : t != 0 ->
  lin a1 a2 B1 A1 (t *: B2) (t^-1 *: A2) =
  cat (a1 ^+ 2) (a2 ^+ 2) B1 A1 B2 A2
  + (a1 * a2) *: (t^-1 *: (B1 *m A2^T) + t *: (B2 *m A1^T)).
Proof.
move=> t0; rewrite lin_expand /cat [(t^-1 *: A2)^T]linearZ /= -!scalemxAl.
by rewrite -!scalemxAr (scalerA t) divff // scale1r.
Qed.

(* ---- rank one adapters with the product of Prop. 1 ------------------- *)
Implicit Types (w p : 'cV[R]_n) (v q f : 'cV[R]_m).

(* Linear merging of two single-fact adapters, gauge parameters t1, t2. *)
Theorem lin_rank1_shift a1 a2 t1 t2 w1 w2 v1 v2 f :
  lin a1 a2 (t1 *: w1) ((t1 * sqF v1)^-1 *: v1)
            (t2 *: w2) ((t2 * sqF v2)^-1 *: v2) *m f
  = (a1 * coef v1 f / t1 + a2 * coef v2 f / t2) *:
    ((a1 * t1) *: w1 + (a2 * t2) *: w2).
Proof.
rewrite /lin outer_apply !scalerA dotFDl !dotFZl /coef !invfM; congr (_ *: _).
move: (dotF v1 f) (dotF v2 f) (sqF v1)^-1 (sqF v2)^-1 t1^-1 t2^-1.
by move=> x y u v r s; ring.
Qed.

Theorem cat_rank1_shift a1 a2 w1 w2 v1 v2 f :
  (a1 *: rk1 w1 v1 + a2 *: rk1 w2 v2) *m f
  = (a1 * coef v1 f) *: w1 + (a2 * coef v2 f) *: w2.
Proof.
rewrite mulmxDl -[(a1 *: _) *m _]scalemxAl -[(a2 *: _) *m _]scalemxAl.
by rewrite !rk1_apply !scalerA.
Qed.

(* Flipping the sign of one minimum-norm pair changes the linear merge. *)
Theorem lin_not_gauge_invariant a1 a2 t1 t2 w1 w2 v1 v2 j :
  a1 != 0 -> a2 != 0 -> t1 != 0 -> t2 != 0 -> v2 != 0 ->
  w1 j 0 != 0 -> w2 j 0 = 0 ->
  lin a1 a2 (t1 *: w1) ((t1 * sqF v1)^-1 *: v1)
            (t2 *: w2) ((t2 * sqF v2)^-1 *: v2)
  <> lin a1 a2 (t1 *: w1) ((t1 * sqF v1)^-1 *: v1)
            (- (t2 *: w2)) (- ((t2 * sqF v2)^-1 *: v2)).
Proof.
move=> a10 a20 t10 t20 v20 w1j w2j /eqP; rewrite -subr_eq0 lin_flip_diff.
rewrite scaler_eq0 !mulf_eq0 pnatr_eq0 /= (negbTE a10) (negbTE a20) /=.
move=> /eqP /(congr1 (fun M => (M *m v2) j 0)).
rewrite mulmxDl !outer_apply mul0mx !mxE w2j !mulr0 addr0 => /eqP.
have sv : sqF v2 != 0 by rewrite sqF_eq0.
rewrite dotFZl -/(sqF v2) !mulf_eq0 invr_eq0 mulf_eq0.
by rewrite (negbTE sv) (negbTE t20) (negbTE t10) (negbTE w1j).
Qed.

End Merge.
