(* From a kernel that depends on inner products alone, and orthonormal embeddings,
   to the hypotheses of eq. 25: features of K prompts with constant overlaps. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules OneFactMerging ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Kernel.
Variables (R : realFieldType) (d m K : nat).
Variables (phi : 'cV[R]_d -> 'cV[R]_m) (kap : R -> R -> R -> R).

(* prompts used: stored one-hop prompts eta j = V e_{y_j} + e_{r2} and the
   two-hop test prompt xi = (V e_x + V e_{r1}) / 2 + e_{r2}. *)
Variables (Vy : 'I_K -> 'cV[R]_d) (Vx Vr1 r2 : 'cV[R]_d).

Hypothesis Vy_on : forall i j, dotF (Vy i) (Vy j) = (i == j)%:R.
Hypotheses (Vxx : sqF Vx = 1) (Vr1r1 : sqF Vr1 = 1) (r2r2 : sqF r2 = 1).
Hypotheses (Vyx : forall j, dotF (Vy j) Vx = 0)
           (Vyr1 : forall j, dotF (Vy j) Vr1 = 0)
           (Vyr2 : forall j, dotF (Vy j) r2 = 0)
           (Vxr1 : dotF Vx Vr1 = 0) (Vxr2 : dotF Vx r2 = 0)
           (Vr1r2 : dotF Vr1 r2 = 0).

Definition eta j := Vy j + r2.
Definition xi := 2%:R^-1 *: (Vx + Vr1) + r2.

Definition prompt_set (x : 'cV[R]_d) := x = xi \/ exists j, x = eta j.

Hypothesis kernel : forall x x', prompt_set x -> prompt_set x' ->
  dotF (phi x) (phi x') = kap (sqF x) (sqF x') (dotF x x').

Definition feats : 'M[R]_(m, K) := \matrix_(r, j) phi (eta j) r 0.

Lemma featsE (u : 'cV[R]_m) j : (feats^T *m u) j 0 = dotF (phi (eta j)) u.
Proof. by rewrite dotF_col mxE; apply: eq_bigr => r _; rewrite !mxE. Qed.

Lemma eta_eta i j : dotF (eta i) (eta j) = 1 + (i == j)%:R.
Proof.
rewrite /eta !(dotFDl, dotFDr) Vy_on Vyr2 [dotF r2 _]dotFC Vyr2 -/(sqF r2) r2r2.
by rewrite addr0 add0r addrC.
Qed.

Lemma eta_xi j : dotF (eta j) xi = 1.
Proof.
rewrite /eta /xi !(dotFDl, dotFDr, dotFZl, dotFZr) Vyx Vyr1 Vyr2.
rewrite ![dotF r2 _]dotFC Vxr2 Vr1r2 -[dotF r2 r2]/(sqF r2) r2r2.
by rewrite !(addr0, add0r, mulr0).
Qed.

Lemma sq_eta j : sqF (eta j) = 2%:R.
Proof. by rewrite /sqF eta_eta eqxx (natrD _ 1 1). Qed.

Definition kx := kap 2%:R (sqF xi) 1.       (* overlap with the test prompt *)
Definition kg := kap 2%:R 2%:R 2%:R.        (* diagonal of the Gram matrix *)
Definition kh := kap 2%:R 2%:R 1.           (* off-diagonal *)

Theorem kernel_overlap : feats^T *m phi xi = kx *: const_mx 1.
Proof.
apply/colP => j; rewrite featsE kernel; [|by right; exists j|by left].
by rewrite sq_eta eta_xi !mxE mulr1.
Qed.

Lemma gramE i j : gram feats i j = if i == j then kg else kh.
Proof.
have -> : gram feats i j = dotF (phi (eta i)) (phi (eta j)).
  by rewrite dotF_col /gram mxE; apply: eq_bigr => r _; rewrite !mxE.
rewrite kernel; [|by right; exists i|by right; exists j].
rewrite !sq_eta eta_eta; case: eqP => _; last by rewrite addr0.
by rewrite (natrD _ 1 1).
Qed.

Theorem kernel_gram_rows :
  gram feats *m const_mx 1 = (kg + kh *+ K.-1) *: const_mx 1 :> 'cV[R]_K.
Proof.
apply/colP => i; rewrite !mxE mulr1 (bigD1 i) //= gramE eqxx mxE mulr1.
rewrite (eq_bigr (fun _ => kh)) => [|j ji]; last first.
  by rewrite gramE eq_sym (negbTE ji) mxE mulr1.
by rewrite sumr_const cardC1 card_ord.
Qed.

(* The Gram matrix is invertible whenever kg > kh >= 0. *)
Theorem kernel_gram_unit : kh < kg -> 0 <= kh -> gram feats \in unitmx.
Proof.
move=> hg h0; rewrite -row_free_unit -kermx_eq0; apply/eqP/row_matrixP => i.
rewrite row0; set v := row i _.
have vG : v *m gram feats = 0 by apply/sub_kermxP; rewrite row_sub.
pose one : 'cV[R]_K := const_mx 1.
have GE : gram feats = (kg - kh)%:M + kh *: (one *m one^T).
  apply/matrixP => j l; rewrite gramE !mxE big_ord1 !mxE mulr1 mulr1.
  by case: eqP => _; rewrite ?mulr1n ?mulr0n ?subrK ?add0r.
have : \tr (v *m gram feats *m v^T) = 0 by rewrite vG mul0mx mxtrace0.
rewrite GE mulmxDr mulmxDl mxtraceD mul_mx_scalar -scalemxAl mxtraceZ.
rewrite -scalemxAr -scalemxAl mxtraceZ.
rewrite -/(dotF v v) -/(sqF v) mulmxA -[_ *m _ *m v^T]mulmxA -[_ *m v^T]trmx_mul.
have sg : 0 < kg - kh by rewrite subr_gt0.
rewrite -/(dotF _ _) -/(sqF _) => /eqP; rewrite addrC.
rewrite paddr_eq0 ?mulr_ge0 ?sqF_ge0 ?(ltW sg) // => /andP[_].
by rewrite mulf_eq0 gt_eqF //= sqF_eq0 => /eqP.
Qed.

End Kernel.

Section Final.
Variables (R : realFieldType) (n d m K : nat).
Variables (phi : 'cV[R]_d -> 'cV[R]_m) (kap : R -> R -> R -> R).
Variables (Vy : 'I_K -> 'cV[R]_d) (Vx Vr1 r2 : 'cV[R]_d).
Notation F2 := (feats phi Vy r2).
Notation fx := (phi (xi Vx Vr1 r2)).

(* Theorems 2 and 3 with K > 1 facts, from the kernel: phi's inner products depend on
   those of the hidden states alone, embeddings are orthonormal; then no weights a1, a2 make
   any of the K two-hop prompts right, whatever adapter 1 does outside the answers. *)
Theorem cat_never_composes (W D1 : 'M[R]_(n, m)) (z a : 'I_K -> 'I_n) (b : 'I_n)
    (a1 a2 : R) (i : 'I_K) :
  (forall i j, dotF (Vy i) (Vy j) = (i == j)%:R) ->
  sqF r2 = 1 -> (forall j, dotF (Vy j) Vx = 0) -> (forall j, dotF (Vy j) Vr1 = 0) ->
  (forall j, dotF (Vy j) r2 = 0) -> dotF Vx r2 = 0 -> dotF Vr1 r2 = 0 ->
  (forall x x', prompt_set Vy Vx Vr1 r2 x -> prompt_set Vy Vx Vr1 r2 x' ->
     dotF (phi x) (phi x') = kap (sqF x) (sqF x') (dotF x x')) ->
  gram F2 \in unitmx ->
  (1 < K)%N -> injective z -> (forall i j, z i != a j) -> (forall j, b != z j) ->
  W *m fx = oh R b -> (forall j, (D1 *m fx) (z j) 0 = 0) ->
  ~~ top1 ((W + (a1 *: D1 + a2 *: edit F2 (targets R z a))) *m fx) (z i).
Proof.
move=> h1 h2 h3 h4 h5 h6 h7 hk gu K2 zI za bz Wf D1z.
have g1 := kernel_gram_rows h1 h2 h5 hk.
have fk := kernel_overlap h1 h2 h3 h4 h5 h6 h7 hk.
apply: (eq25_never_top1 a1 a2 i K2 zI za bz Wf D1z gu _ g1 fk).
apply/eqP => s0; move: g1; rewrite s0 scale0r => /(congr1 (mulmx (invmx (gram F2)))).
rewrite mulmxA mulVmx // mul1mx mulmx0 => /matrixP /(_ i 0).
by rewrite !mxE => /eqP; rewrite oner_eq0.
Qed.

End Final.
