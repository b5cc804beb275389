(* Arrow (eq. 28): adapters weighted prompt by prompt. *)
From mathcomp Require Import all_ssreflect all_algebra.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules OneFactMerging.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Arrow.
Variables (R : realFieldType) (n m : nat).
Notation oh := (oh R).

(* Arrow as a prompt-dependent weighted sum of the adapters: weights a1 f, a2 f
   may be ANY functions of the activation, provided adapter 2 is weighted at
   least as much on U as on X (X is closer to adapter 1, U is not). *)
Theorem arrow_products_efficacy_locality (W : 'M[R]_(n, m)) v1 v2 fX fU
    (b b' y y0 z a : 'I_n) (a1 a2 : 'cV[R]_m -> R) :
  W *m fX = oh b -> W *m fU = oh b' ->
  [/\ z != y, z != y0, z != b, z != b' & z != a] ->
  [&& b != y & b != y0] -> [&& b' != y & b' != y0] -> a != b ->
  coef v2 fX = coef v2 fU -> 0 <= coef v2 fU -> a2 fX <= a2 fU ->
  ~~ (top1 (W *m fX + (a1 fX *: rk1 (oh y - oh y0) v1
                       + a2 fX *: rk1 (oh z - oh a) v2) *m fX) z &&
      top1 (W *m fU + (a1 fU *: rk1 (oh y - oh y0) v1
                       + a2 fU *: rk1 (oh z - oh a) v2) *m fU) b').
Proof.
move=> WX WU h1 h2 h3 ab ce c0 le; rewrite !cat_rank1_shift WX WU !addrA.
rewrite -/(out b y y0 z a (a1 fX * coef v1 fX) (a2 fX * coef v2 fX)).
rewrite -/(out b' y y0 z a (a1 fU * coef v1 fU) (a2 fU * coef v2 fU)).
by apply: (efficacy_locality _ _ h1 h2 h3 ab); rewrite ce ler_wpmul2r.
Qed.

End Arrow.
