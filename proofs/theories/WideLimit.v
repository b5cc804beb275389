(* Theorem 2 at the paper's own infinite-width overlaps, and softmax of the exponential
   function (over Coq's reals). *)
From Coq Require Import Reals Lra.
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import Rstruct.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers AngularIntegral.
From LoRA Require Import UnseenEntities.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Bridge.
Variable n : nat.
Implicit Types (b y z a : 'I_n).

Lemma c12 : (`|c1| < c2) && (c2 <= 1) && (1 < 2%:R * c2).
Proof.
have h1 := c1_bounds; have h2 := c2_bounds.
apply/andP; split; [apply/andP; split|].
- rewrite ger0_norm; first by apply/RltP; lra.
  by apply/RleP; rewrite /=; change (Rle 0 c1); lra.
- by apply/RleP; change (Rle c2 1); lra.
rewrite mulr2n mulrDl mul1r; apply/RltP; change (Rlt 1 (Rplus c2 c2)); lra.
Qed.

(* r2(y) <> r2(r1 x): summing the two adapters leaves the OLD answer on top,
   so the new two-hop answer z is not produced. *)
Theorem theorem2_wide_limit b y y0 z a :
  y != y0 -> z != a -> z != b ->
  [&& y != z, y != a & y != b] -> [&& y0 != z, y0 != a & y0 != b] ->
  a != b -> ~~ top1 (out b y y0 z a c1 c2) z.
Proof.
move=> *; apply: theorem2_old_answer_stays => //.
by have /andP[/andP[]] := c12.
Qed.

(* r2(y) = r2(r1 x): the sum of the two adapters DOES produce z. *)
Theorem theorem2_wide_limit_coincidence b y y0 z :
  y != y0 -> z != b -> [&& y != z & y != b] -> [&& y0 != z & y0 != b] ->
  top1 (out b y y0 z b c1 c2) z.
Proof.
move=> *; apply: theorem2_coincidence => //; by have /andP[/andP[]] := c12.
Qed.

(* Novel facts (base silent on all three prompts): the sum produces z. *)
Theorem theorem2_wide_limit_fresh y z : y != z -> (2 < n)%N ->
  top1 (c1 *: oh _ y + c2 *: oh _ z) z.
Proof.
move=> yz n2; rewrite fresh_fact_answer_iff //.
have /andP[/andP[h _] _] := c12.
by rewrite (le_lt_trans (ler_norm _) h) (le_lt_trans (normr_ge0 _) h).
Qed.

End Bridge.

(* Arrow's weights: K adapters whose logits, divided by the temperature, are at most e. *)
Theorem arrow_weights_near_uniform (K : nat) (l : 'I_K -> R) (e : R) i : (1 < K)%N ->
  (forall j, 0 <= l j <= e) -> `|softmax exp l i - K%:R^-1| <= (1 - K%:R^-1) * e.
Proof.
move=> K1 le; apply: softmax_near_uniform => // [x y|x]; first exact: exp_plus.
by apply/RleP; exact: exp_ineq1_le.
Qed.

