(* Section 6: when a single hop survives a merge. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules OneFactMerging ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Survive.
Variables (R : realFieldType) (n m : nat).
Notation oh := (oh R).

(* Contrast with [sum_merge_breaks_one_hop]: under argmax the one-hop training
   prompt SURVIVES the sum as long as the overlap is below one. *)
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

End Survive.
