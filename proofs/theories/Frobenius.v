(* The inner product of matrices, <A, B> = tr (A B^T), and its norm:
   what every other file computes with. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Frobenius.
Variable R : realFieldType.

Definition dotF m n (A B : 'M[R]_(m, n)) : R := \tr (A *m B^T).
Definition sqF m n (A : 'M[R]_(m, n)) : R := dotF A A.

Lemma dotFE m n (A B : 'M[R]_(m, n)) :
  dotF A B = \sum_i \sum_j A i j * B i j.
Proof.
rewrite /dotF /mxtrace; apply: eq_bigr => i _.
by rewrite mxE; apply: eq_bigr => j _; rewrite mxE.
Qed.

Lemma sqFE m n (A : 'M[R]_(m, n)) : sqF A = \sum_i \sum_j A i j ^+ 2.
Proof. by rewrite /sqF dotFE; do 2![apply: eq_bigr => ? _]; rewrite expr2. Qed.

Lemma sqF_ge0 m n (A : 'M[R]_(m, n)) : 0 <= sqF A.
Proof. by rewrite sqFE; do 2![apply: sumr_ge0 => ? _]; apply: sqr_ge0. Qed.

Lemma sqF_eq0 m n (A : 'M[R]_(m, n)) : (sqF A == 0) = (A == 0).
Proof.
apply/idP/eqP => [|->]; last first.
  by rewrite /sqF /dotF mul0mx mxtrace0.
rewrite sqFE psumr_eq0 => [/allP h|i _]; last first.
  by apply: sumr_ge0 => j _; apply: sqr_ge0.
apply/matrixP => i j; rewrite mxE.
have := h i (mem_index_enum i); rewrite psumr_eq0 => [/allP hi|j' _].
  by have := hi j (mem_index_enum j); rewrite sqrf_eq0 => /eqP.
exact: sqr_ge0.
Qed.

Lemma sqF_gt0 m n (A : 'M[R]_(m, n)) : (0 < sqF A) = (A != 0).
Proof. by rewrite lt_def sqF_ge0 andbT sqF_eq0. Qed.

Lemma dotFC m n (A B : 'M[R]_(m, n)) : dotF A B = dotF B A.
Proof. by rewrite /dotF -mxtrace_tr trmx_mul trmxK. Qed.

Lemma dotFDl m n (A B C : 'M[R]_(m, n)) : dotF (A + B) C = dotF A C + dotF B C.
Proof. by rewrite /dotF mulmxDl mxtraceD. Qed.

Lemma dotFDr m n (A B C : 'M[R]_(m, n)) : dotF C (A + B) = dotF C A + dotF C B.
Proof. by rewrite dotFC dotFDl !(dotFC _ C). Qed.

Lemma dotFZl m n a (A B : 'M[R]_(m, n)) : dotF (a *: A) B = a * dotF A B.
Proof. by rewrite /dotF -scalemxAl mxtraceZ. Qed.

Lemma dotFZr m n a (A B : 'M[R]_(m, n)) : dotF A (a *: B) = a * dotF A B.
Proof. by rewrite dotFC dotFZl dotFC. Qed.

Lemma sqFZ m n a (A : 'M[R]_(m, n)) : sqF (a *: A) = a ^+ 2 * sqF A.
Proof. by rewrite /sqF dotFZl dotFZr mulrA expr2. Qed.

Lemma sqF_tr m n (A : 'M[R]_(m, n)) : sqF A^T = sqF A.
Proof. by rewrite /sqF /dotF trmxK mxtrace_mulC. Qed.

Lemma sqFD m n (A B : 'M[R]_(m, n)) :
  sqF (A + B) = sqF A + 2%:R * dotF A B + sqF B.
Proof. by rewrite /sqF !(dotFDl, dotFDr) (dotFC B A); ring. Qed.

Lemma sqF_pyth m n (A B : 'M[R]_(m, n)) :
  dotF A B = 0 -> sqF (A + B) = sqF A + sqF B.
Proof. by move=> h; rewrite sqFD h mulr0 addr0. Qed.

Lemma dotF_adj m n p (X : 'M[R]_(m, p)) (A : 'M[R]_(p, n)) (B : 'M[R]_(m, n)) :
  dotF (X *m A) B = dotF A (X^T *m B).
Proof. by rewrite /dotF trmx_mul trmxK mulmxA -[in LHS]mulmxA mxtrace_mulC. Qed.

Lemma dotF0r m n (A : 'M[R]_(m, n)) : dotF A 0 = 0.
Proof. by rewrite /dotF trmx0 mulmx0 mxtrace0. Qed.

(* <A, B>^2 <= |A|^2 |B|^2 *)
Lemma cauchy_schwarz m n (A B : 'M[R]_(m, n)) : dotF A B ^+ 2 <= sqF A * sqF B.
Proof.
have [->|A0] := eqVneq A 0.
  by rewrite /sqF {1}/dotF {1}/dotF !mul0mx mxtrace0 expr0n mul0r.
have sA : 0 < sqF A by rewrite sqF_gt0.
have := sqF_ge0 (sqF A *: B - dotF A B *: A).
rewrite -scaleNr sqFD !sqFZ dotFZl dotFZr (dotFC B A).
rewrite (_ : _ + _ = sqF A * (sqF A * sqF B - dotF A B ^+ 2)); last by ring.
by rewrite pmulr_rge0 // subr_ge0.
Qed.

(* column vectors *)
Lemma colT_mul n (u v : 'cV[R]_n) : u^T *m v = (dotF u v)%:M.
Proof. by rewrite [LHS]mx11_scalar -trace_mx11 mxtrace_mulC dotFC. Qed.

Lemma sqF_outer m n (p : 'cV[R]_m) (q : 'cV[R]_n) :
  sqF (p *m q^T) = sqF p * sqF q.
Proof.
rewrite {1}/sqF {1}/dotF trmx_mul trmxK mulmxA -(mulmxA p) colT_mul.
by rewrite -/(sqF q) mul_mx_scalar -scalemxAl mxtraceZ -/(dotF p p) mulrC.
Qed.

End Frobenius.
