(* Eq. 23 (P2): the least edit that stores several facts at once.

   F: the features of the k stored prompts, as columns; T: the changes of output
   they need.  The edit is T (F^T F)^-1 F^T. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section MultiFact.
Variables (R : realFieldType) (m n k : nat).
Variables (F : 'M[R]_(n, k)) (T : 'M[R]_(m, k)).

Definition gram := F^T *m F.
Definition edit := T *m invmx gram *m F^T.        (* paper, eq. (23) *)
Definition proj := F *m invmx gram *m F^T.

Hypothesis gram_unit : gram \in unitmx.

Lemma gram_sym : gram^T = gram.
Proof. by rewrite /gram trmx_mul trmxK. Qed.

Lemma invgram_sym : (invmx gram)^T = invmx gram.
Proof. by rewrite trmx_inv gram_sym. Qed.

Lemma proj_sym : proj^T = proj.
Proof. by rewrite /proj !trmx_mul trmxK invgram_sym mulmxA. Qed.

Lemma projF : proj *m F = F.
Proof. by rewrite /proj -!mulmxA -/gram mulVmx // mulmx1. Qed.

Lemma proj_idem : proj *m proj = proj.
Proof. by rewrite {2}/proj !mulmxA projF. Qed.

Lemma edit_feasible : edit *m F = T.
Proof. by rewrite /edit -!mulmxA -/gram mulVmx // mulmx1. Qed.

Lemma feasible_proj (D : 'M[R]_(m, n)) : D *m F = T -> D *m proj = edit.
Proof. by move=> h; rewrite /proj !mulmxA h. Qed.

Theorem edit_pythagoras (D : 'M[R]_(m, n)) :
  D *m F = T -> sqF D = sqF edit + sqF (D - edit).
Proof.
move=> h; have o : dotF edit (D - edit) = 0.
  rewrite dotFC /dotF [edit^T]trmx_mul trmxK mulmxA.
  by rewrite mulmxBl edit_feasible h subrr mul0mx mxtrace0.
by rewrite -(sqF_pyth o) addrC subrK.
Qed.

(* Eq. 23 has the least Frobenius norm among all D with D F = T, and it alone does. *)
Theorem edit_least_frobenius (D : 'M[R]_(m, n)) :
  D *m F = T -> sqF edit <= sqF D ?= iff (D == edit).
Proof.
move=> h; split; rewrite (edit_pythagoras h).
  by rewrite ler_addl sqF_ge0.
by rewrite -subr_eq0 opprD addrA subrr add0r oppr_eq0 sqF_eq0 subr_eq0.
Qed.

(* The regulariser actually used by the paper: |A|_F^2 + |B|_F^2, any rank s. *)
Definition cost s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) := sqF A + sqF B.
Definition feasible s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) :=
  A *m B^T *m F = T.

Theorem projecting_improves s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) :
  feasible A B ->
  [/\ feasible A (proj *m B), A *m (proj *m B)^T = edit &
      cost A B = cost A (proj *m B) + sqF (B - proj *m B)].
Proof.
rewrite /feasible => h; split.
- by rewrite trmx_mul proj_sym mulmxA -mulmxA projF.
- by rewrite trmx_mul proj_sym mulmxA; apply: feasible_proj.
rewrite /cost -addrA; congr (_ + _).
have o : dotF (proj *m B) (B - proj *m B) = 0.
  by rewrite dotF_adj proj_sym mulmxBr mulmxA proj_idem subrr dotF0r.
by rewrite -(sqF_pyth o) addrC subrK.
Qed.

(* Every minimiser of the paper's regulariser has the product of eq. (23). *)
Theorem minimisers_have_product_edit s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) :
  feasible A B ->
  (forall (A' : 'M[R]_(m, s)) (B' : 'M[R]_(n, s)),
      feasible A' B' -> cost A B <= cost A' B') ->
  A *m B^T = edit /\ proj *m B = B.
Proof.
move=> fAB minAB; have [fA' eA' costE] := projecting_improves fAB.
have : sqF (B - proj *m B) <= 0.
  by have := minAB _ _ fA'; rewrite costE ger_addl.
rewrite le_eqVlt ltNge sqF_ge0 orbF sqF_eq0 subr_eq0 => /eqP eB.
by split=> //; rewrite -{1}eA' -eB.
Qed.

(* Conversely, a balanced full-rank factorisation of eq. (23) is a GLOBAL
   minimiser among factorisations of every inner rank (no SVD needed). *)
Lemma sqF_contract p q (P : 'M[R]_p) (A : 'M[R]_(p, q)) :
  P^T = P -> P *m P = P -> dotF A (P *m A) <= sqF A.
Proof.
move=> Ps Pi; have o : dotF (P *m A) (A - P *m A) = 0.
  by rewrite dotF_adj Ps mulmxBr mulmxA Pi subrr dotF0r.
have -> : dotF A (P *m A) = sqF (P *m A).
  by rewrite -{1}(subrK (P *m A) A) dotFDl dotFC o add0r.
by rewrite -{2}(subrK (P *m A) A) addrC (sqF_pyth o) ler_addl sqF_ge0.
Qed.

Lemma dotF_le p q (X Y : 'M[R]_(p, q)) : 2%:R * dotF X Y <= sqF X + sqF Y.
Proof.
rewrite -subr_ge0 (_ : _ - _ = sqF (X + (-1) *: Y)) ?sqF_ge0 //.
rewrite sqFD sqFZ dotFZr.
by move: (sqF X) (sqF Y) (dotF X Y) => a b c; ring.
Qed.

(* A0 B0^T = edit with A0^T A0 = B0^T B0 invertible: then |A0|^2 + |B0|^2 is least
   among all A, B of every rank s with A B^T F = T. *)
Theorem balanced_factors_are_minimal r s (A0 : 'M[R]_(m, r)) (B0 : 'M[R]_(n, r))
    (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) :
  A0 *m B0^T = edit -> A0^T *m A0 = B0^T *m B0 -> B0^T *m B0 \in unitmx ->
  feasible A B -> cost A0 B0 <= cost A B.
Proof.
move=> e0 bal S_unit fAB; have [_ e' ->] := projecting_improves fAB.
set B' := proj *m B in e' *; set S := B0^T *m B0 in bal S_unit.
have Ssym : S^T = S by rewrite /S trmx_mul trmxK.
pose Z := A0 *m invmx S *m B0^T.
have ZT : Z^T = B0 *m invmx S *m A0^T.
  by rewrite /Z !trmx_mul trmxK trmx_inv Ssym mulmxA.
pose P := A0 *m invmx S *m A0^T.
have Ps : P^T = P by rewrite /P !trmx_mul trmxK trmx_inv Ssym mulmxA.
have Pi : P *m P = P.
  by rewrite /P !mulmxA -(mulmxA _ A0^T A0) bal -/S -(mulmxA A0 _ S) mulVmx // mulmx1.
have ZZ : Z *m Z^T = P.
  by rewrite ZT /Z /P !mulmxA -(mulmxA _ B0^T B0) -/S -(mulmxA A0 _ S) mulVmx // mulmx1.
have c0 : cost A0 B0 = 2%:R * dotF Z edit.
  have -> : dotF Z edit = sqF B0.
    rewrite -e0 /Z dotF_adj trmx_mul trmx_inv Ssym mulmxA.
    by rewrite -(mulmxA _ A0^T A0) bal -/S mulVmx // mul1mx -/(sqF _) sqF_tr.
  have -> : cost A0 B0 = sqF B0 + sqF B0; last by rewrite mulr2n mulrDl mul1r.
  congr (_ + _); rewrite -sqF_tr -[in RHS]sqF_tr /sqF /dotF !trmxK.
  by rewrite bal.
rewrite c0 -e' (_ : dotF Z _ = dotF B' (Z^T *m A)); last first.
  by rewrite -dotF_adj /dotF trmx_mul trmxK mulmxA.
apply: le_trans (dotF_le _ _) _; rewrite /cost addrC -addrA ler_add //.
  rewrite {1}/sqF dotF_adj trmxK mulmxA ZZ; exact: sqF_contract.
by rewrite ler_addl sqF_ge0.
Qed.

(* Orthogonal gauge freedom: same product, same cost. *)
Theorem orthogonal_gauge s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) (Q : 'M[R]_s) :
  Q *m Q^T = 1%:M ->
  (A *m Q) *m (B *m Q)^T = A *m B^T /\ cost (A *m Q) (B *m Q) = cost A B.
Proof.
move=> q; split; first by rewrite trmx_mul mulmxA -(mulmxA A) q mulmx1.
by rewrite /cost /sqF /dotF !trmx_mul !mulmxA -!(mulmxA _ Q) q !mulmx1.
Qed.

End MultiFact.
