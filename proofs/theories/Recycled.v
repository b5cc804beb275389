(* Recycled updates explain no more of a relabelled target than random ones.

   n examples x_i -> z_(s i): the outputs they ask for are the rows of the permutation
   matrix P_s, and what is left of them once every answer's mean is known is the centred
   target P_s - J/n, of squared norm n - 1.  Rules that fit weights to examples find the
   nearest point in the span of the outputs of K updates.  If that span does not depend
   on s, whatever it was trained on, it captures on average over all n! permutations
   K / (n-1)^2 of the target where it lies among the matrices with row and column sums
   0, and less where it does not.  Such matrices are (n-1)^2 dimensions, all alike to a
   permutation drawn at random.

   What one more update gains is its overlap with what is left, no more. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers ManyFacts Relabelling.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- least squares in the span of K updates ------------------------------- *)
Section Span.
Variables (R : realFieldType) (p q : nat).
Implicit Types (T D : 'M[R]_(p, q)).

Section Family.
Variables (K : nat) (U : 'I_K -> 'M[R]_(p, q)).

(* U: an orthonormal basis of the span of the updates' outputs on the examples. *)
Definition orthonormal := forall a b, dotF (U a) (U b) = (a == b)%:R.

Definition fitted T := \sum_a dotF (U a) T *: U a.
Definition captured T := \sum_a dotF (U a) T ^+ 2.

Lemma dotF_suml (F : 'I_K -> 'M[R]_(p, q)) T : dotF (\sum_a F a) T = \sum_a dotF (F a) T.
Proof. by rewrite /dotF mulmx_suml linear_sum. Qed.

Lemma dotF_fitted T b : orthonormal -> dotF (fitted T) (U b) = dotF (U b) T.
Proof.
move=> on; rewrite dotF_suml (eq_bigr (fun a => (b == a)%:R * dotF (U a) T)) => [|a _].
  by rewrite sum_delta.
by rewrite dotFZl on eq_sym mulrC.
Qed.

Lemma rest_orthogonal T (c : 'I_K -> R) : orthonormal ->
  dotF (T - fitted T) (\sum_a c a *: U a) = 0.
Proof.
move=> on; rewrite dotFC dotF_suml big1 // => a _.
by rewrite dotFZl dotFC -scaleN1r dotFDl dotFZl dotF_fitted // mulN1r (dotFC T) subrr mulr0.
Qed.

Lemma sqF_fitted T : orthonormal -> sqF (fitted T) = captured T.
Proof.
move=> on; rewrite {1}/sqF {1}/fitted dotF_suml; apply: eq_bigr => a _.
by rewrite dotFZl (dotFC _ (fitted T)) dotF_fitted // expr2.
Qed.

(* Any weights leave at least |T|^2 - captured; the least squares leave just that. *)
Theorem least_squares T (c : 'I_K -> R) : orthonormal ->
  sqF T - captured T <= sqF (T - \sum_a c a *: U a) ?= iff (\sum_a c a *: U a == fitted T).
Proof.
move=> on; set X := \sum_a c a *: U a.
have rest : dotF (T - fitted T) (fitted T - X) = 0.
  rewrite (_ : fitted T - X = \sum_a (dotF (U a) T - c a) *: U a) ?rest_orthogonal //.
  by rewrite -sumrB; apply: eq_bigr => a _; rewrite scalerBl.
have e : sqF (T - X) = sqF T - captured T + sqF (fitted T - X).
  rewrite (_ : T - X = T - fitted T + (fitted T - X)); last by rewrite addrA subrK.
  rewrite (sqF_pyth rest); congr (_ + _).
  have -> : sqF T = sqF (T - fitted T) + captured T; last by rewrite addrK.
  by rewrite -sqF_fitted // -sqF_pyth ?subrK //; apply: rest_orthogonal.
split; rewrite e; first by rewrite ler_addl sqF_ge0.
by rewrite -{1}[sqF T - _]addr0 (inj_eq (addrI _)) eq_sym sqF_eq0 subr_eq0 eq_sym.
Qed.

(* One more update D: with u its part outside the span and r what was left of T, the
   least squares gain <r, u>^2 / |u|^2, and <r, u> = <r, D> is the overlap with what was
   left.  (Where D lies in the span, u = 0 and so is the gain: x / 0 = 0.) *)
Theorem gain_is_overlap T D : orthonormal ->
  let r := T - fitted T in let u := D - fitted D in
  [/\ dotF r u = dotF r D,
      forall c b, sqF r - dotF r u ^+ 2 / sqF u <= sqF (T - (\sum_a c a *: U a + b *: D)) &
      exists c b, sqF (T - (\sum_a c a *: U a + b *: D)) = sqF r - dotF r u ^+ 2 / sqF u].
Proof.
move=> on r u; have ru : dotF r u = dotF r D.
  by rewrite /u -scaleN1r dotFDr dotFZr {1}/fitted rest_orthogonal // mulr0 addr0.
have e c b : sqF (T - (\sum_a c a *: U a + b *: D)) =
    sqF (r - b *: u) + sqF (\sum_a (dotF (U a) T - c a - b * dotF (U a) D) *: U a).
  set X := \sum_a (_ - _ - _) *: U a.
  have XE : X = fitted T - \sum_a c a *: U a - b *: fitted D.
    rewrite /X scaler_sumr -!sumrB; apply: eq_bigr => a _.
    by rewrite !scalerBl scalerA.
  have o : dotF (r - b *: u) X = 0.
    by rewrite -scaleNr dotFDl dotFZl !rest_orthogonal // mulr0 addr0.
  rewrite -(sqF_pyth o) XE; congr sqF; rewrite /r /u scalerBr !opprD opprK.
  by apply/matrixP => i j; rewrite !mxE; ring.
have quad b : sqF (r - b *: u) = sqF r - 2%:R * b * dotF r u + b ^+ 2 * sqF u.
  by rewrite -scaleNr sqFD dotFZr sqFZ; ring.
split=> // [c b|].
  rewrite e; apply: (@le_trans _ _ (sqF (r - b *: u))); last by rewrite ler_addl sqF_ge0.
  rewrite quad; have [u0|u0] := eqVneq u 0.
    have z : dotF r u = 0 by rewrite u0 dotF0r.
    by rewrite z u0 expr0n mul0r /sqF !dotF0r !mulr0 subr0 addr0.
  have U0 : sqF u != 0 by rewrite sqF_eq0.
  rewrite -subr_ge0 (_ : _ - _ = (b * sqF u - dotF r u) ^+ 2 / sqF u); last by field.
  by rewrite divr_ge0 ?sqr_ge0 ?sqF_ge0.
pose b := dotF r u / sqF u.
exists (fun a => dotF (U a) T - b * dotF (U a) D), b.
rewrite e quad [X in _ + sqF X]big1 => [|a _]; last first.
  by rewrite opprB addrCA subrr addr0 subrr scale0r.
rewrite (_ : sqF 0 = 0) ?addr0; last by rewrite /sqF dotF0r.
rewrite /b; have [u0|u0] := eqVneq u 0.
  have z : dotF r u = 0 by rewrite u0 dotF0r.
  by rewrite z !mul0r mulr0 expr0n !mul0r subr0 addr0.
have U0 : sqF u != 0 by rewrite sqF_eq0.
by field.
Qed.

(* An adapter that stores the examples itself (eq. 23) gains all that was left. *)
Corollary new_adapter_gains_all m (F : 'M[R]_(m, q)) T : orthonormal ->
  gram F \in unitmx -> let D := edit F T *m F in
  let r := T - fitted T in let u := D - fitted D in dotF r u ^+ 2 / sqF u = sqF r.
Proof.
move=> on gu D r u; have -> : u = r by rewrite /u /D edit_feasible.
have [->|r0] := eqVneq r 0; first by rewrite /sqF dotF0r invr0 mulr0.
by rewrite -/(sqF r) expr2 mulfK // sqF_eq0.
Qed.

End Family.

(* What reaches a prompt that is none of the examples but overlaps with each by kappa, as
   another entity under the same relations: the sum of what they ask for, times the
   kernel's share of each, and so nothing of a target whose rows sum to 0. *)
Theorem unseen_prompts_get_the_mean m (F : 'M[R]_(m, q)) T (f : 'cV[R]_m) (a b kappa : R) :
  gram F \in unitmx -> gram F = a%:M + b *: const_mx 1 -> F^T *m f = kappa *: const_mx 1 ->
  a + b * q%:R != 0 -> edit F T *m f = (kappa / (a + b * q%:R)) *: (T *m const_mx 1).
Proof.
move=> gu gE fE s0; rewrite /edit -!mulmxA fE -!scalemxAr -scalerA; congr (_ *: _).
suff -> : invmx (gram F) *m (const_mx 1 : 'cV[R]_q) = (a + b * q%:R)^-1 *: const_mx 1.
  by rewrite -scalemxAr.
rewrite -[RHS](mulKmx gu); congr (_ *m _); rewrite -scalemxAr gE mulmxDl mul_scalar_mx -scalemxAl.
apply/colP => i; rewrite !mxE (eq_bigr (fun=> 1)) => [|j _]; last by rewrite !mxE mulr1.
by rewrite sumr_const card_ord mulr1 -[1 *+ q]/(q%:R) mulVf.
Qed.

End Span.

(* ---- the mean over all relabellings --------------------------------------- *)
Section Mean.
Variables (R : realFieldType) (n : nat).
Hypothesis n1 : (1 < n)%N.
Implicit Types (M : 'M[R]_n) (s : 'S_n) (i j k l : 'I_n).

Definition centred M := (forall i, \sum_j M i j = 0) /\ (forall j, \sum_i M i j = 0).
Definition mean_over (g : 'S_n -> R) : R := (\sum_s g s) / (n`!)%:R.
(* What the examples x_i -> z_(s i) ask for, without the mean of each answer. *)
Definition target s : 'M[R]_n := perm_mx s - const_mx n%:R^-1.

Let n0 : n%:R != 0 :> R. Proof. by rewrite pnatr_eq0 -lt0n (ltn_trans _ n1). Qed.
Let m0 : n.-1%:R != 0 :> R. Proof. by rewrite pnatr_eq0 -lt0n -ltnS prednK // ltnW. Qed.
Let nS : n%:R = n.-1%:R + 1 :> R. Proof. by rewrite -(natrD _ _ 1) addn1 prednK // ltnW. Qed.

(* How often i goes to j and k to l, for i != k: equally often for all j != l. *)
Definition both i k j l : nat := #|[set s : 'S_n | (s i == j) && (s k == l)]|.

Lemma both_same i k j : i != k -> both i k j j = 0%N.
Proof.
move=> ik; apply/eqP; rewrite cards_eq0 -subset0; apply/subsetP => s.
by rewrite inE => /andP[/eqP <- /eqP /perm_inj ki]; rewrite ki eqxx in ik.
Qed.

Lemma both_const i k j l l' : j != l -> j != l' -> both i k j l = both i k j l'.
Proof.
move=> jl jl'; rewrite /both -(card_imset _ (mulIg (tperm l l'))).
congr #|pred_of_set _|; apply/setP => s; rewrite inE; apply/imsetP/andP => [[t]|[]].
  rewrite inE => /andP[/eqP ti /eqP tk] ->; rewrite !permM ti tk tpermL eqxx.
  by rewrite tpermD // eq_sym.
move=> /eqP si /eqP sk; exists (s * tperm l l')%g; last by rewrite -mulgA tperm2 mulg1.
by rewrite inE !permM si sk tpermR eqxx tpermD 1?eq_sym // eqxx.
Qed.

Lemma both_sum i k j l : i != k -> j != l -> (n.-1 * both i k j l)%N = hits i j.
Proof.
move=> ik jl; rewrite /hits -sum1_card (partition_big (fun s : 'S_n => s k) xpredT) //=.
rewrite (bigD1 j) //= big1 => [|s /andP[]]; last first.
  by rewrite inE => /eqP <- /eqP /perm_inj ki; rewrite ki eqxx in ik.
rewrite add0n (eq_bigr (fun=> both i k j l)) => [|l' jl']; last first.
  rewrite (@both_const i k j l l') // 1?eq_sym // /both -sum1_card.
  by apply: eq_bigl => s; rewrite !inE.
by rewrite sum_nat_const (@eq_card _ _ (predC1 j)) // cardC1 card_ord.
Qed.

Lemma sum_image (g : 'I_n -> R) i s : g (s i) = \sum_j (s i == j)%:R * g j.
Proof. by rewrite sum_delta. Qed.

Lemma dotF_perm M s : dotF M (perm_mx s) = \sum_i M i (s i).
Proof.
rewrite dotFE; apply: eq_bigr => i _; rewrite (sum_image (M i) i).
by apply: eq_bigr => j _; rewrite !mxE mulrC.
Qed.

Notation often := ((n`!)%:R / n%:R : R).

Lemma hitsE i j : (hits i j)%:R = often.
Proof. by apply: (mulfI n0); rewrite -natrM hits_sum mulrCA divff ?mulr1. Qed.

Lemma bothE i k j l : i != k -> (both i k j l)%:R = (j != l)%:R * (often / n.-1%:R).
Proof.
move=> ik; have [->|jl] := eqVneq j l; first by rewrite both_same // mul0r.
by apply: (mulfI m0); rewrite -natrM both_sum // hitsE mul1r mulrCA divff ?mulr1.
Qed.

Lemma sum_of_one (g : 'I_n -> R) i : \sum_(s : 'S_n) g (s i) = often * \sum_j g j.
Proof.
rewrite (eq_bigr _ (fun s _ => sum_image g i s)).
rewrite exchange_big mulr_sumr; apply: eq_bigr => j _ /=.
rewrite -mulr_suml -natr_sum -(hitsE i j) /hits -sum1_card [in RHS]big_mkcond /=.
by congr (_%:R * _); apply: eq_bigr => s _; rewrite inE; case: (s i == j).
Qed.

Lemma sum_of_two (g h : 'I_n -> R) i k : i != k -> \sum_j h j = 0 ->
  \sum_(s : 'S_n) g (s i) * h (s k) = - (often / n.-1%:R) * \sum_j g j * h j.
Proof.
move=> ik h0.
transitivity (\sum_j \sum_l (both i k j l)%:R * (g j * h l)).
  transitivity (\sum_(s : 'S_n) \sum_j (s i == j)%:R * g j * \sum_l (s k == l)%:R * h l).
    by apply: eq_bigr => s _; rewrite -mulr_suml -!sum_image.
  rewrite exchange_big /=; apply: eq_bigr => j _.
  under eq_bigr do rewrite mulr_sumr.
  rewrite exchange_big /=; apply: eq_bigr => l _.
  rewrite /both -sum1_card natr_sum [in RHS]big_mkcond /= mulr_suml.
  by apply: eq_bigr => s _; rewrite inE; case: (s i == j); case: (s k == l) => /=; ring.
rewrite mulr_sumr; apply: eq_bigr => j _.
have -> : - (often / n.-1%:R) * (g j * h j) = often / n.-1%:R * g j * (\sum_l h l - h j).
  by rewrite h0; ring.
rewrite [\sum_l h l](bigD1 j) //= addrC addKr (bigD1 j) //= both_same // mul0r add0r.
by rewrite mulr_sumr; apply: eq_bigr => l lj; rewrite bothE // eq_sym lj mul1r !mulrA.
Qed.

(* Of a matrix with row and column sums 0, the squared overlap with P_s is on average
   |M|^2 / (n - 1). *)
Theorem mean_square_overlap M : centred M ->
  mean_over (fun s => dotF M (perm_mx s) ^+ 2) = sqF M / n.-1%:R.
Proof.
move=> [rows cols]; rewrite /mean_over.
have -> : \sum_(s : 'S_n) dotF M (perm_mx s) ^+ 2 =
    \sum_i (often + often / n.-1%:R) * \sum_j M i j ^+ 2.
  transitivity (\sum_(s : 'S_n) \sum_i \sum_k M i (s i) * M k (s k)).
    apply: eq_bigr => s _; rewrite dotF_perm expr2 mulr_suml.
    by apply: eq_bigr => i _; rewrite mulr_sumr.
  rewrite exchange_big /=; apply: eq_bigr => i _.
  rewrite exchange_big (bigD1 i) //= mulrDl; congr (_ + _).
    by rewrite (sum_of_one (fun j => M i j * M i j) i).
  rewrite (eq_bigr (fun k => - (often / n.-1%:R) * \sum_j M i j * M k j)) => [|k ki]; last first.
    by rewrite (@sum_of_two (M i) (M k)) // eq_sym.
  rewrite -mulr_sumr mulNr -mulrN; congr (_ * _); rewrite exchange_big -sumrN /=.
  apply: eq_bigr => j _; rewrite -mulr_sumr.
  by have := cols j; rewrite (bigD1 i) //= => /eqP; rewrite addrC addr_eq0 => /eqP ->; ring.
have F0 : (n`!)%:R != 0 :> R by rewrite pnatr_eq0 -lt0n fact_gt0.
rewrite -mulr_sumr -sqFE nS; move: m0 n0 F0; rewrite nS.
by move: n.-1%:R (n`!)%:R (sqF M) => a f q a0 a1 f0; field; rewrite a0 a1 f0.
Qed.

(* Taking the means of rows and columns away: C M C with C = 1 - J/n. *)
Definition centring : 'M[R]_n := 1%:M - const_mx n%:R^-1.
Definition centre M := centring *m M *m centring.

Lemma const_mulr p (A : 'M[R]_(n, p)) i (j : 'I_p) :
  ((const_mx n%:R^-1 : 'M[R]_n) *m A) i j = (\sum_k A k j) / n%:R.
Proof. by rewrite mxE mulr_suml; apply: eq_bigr => k _; rewrite mxE mulrC. Qed.

Lemma const_mull p (A : 'M[R]_(p, n)) (i : 'I_p) j :
  (A *m (const_mx n%:R^-1 : 'M[R]_n)) i j = (\sum_k A i k) / n%:R.
Proof. by rewrite mxE mulr_suml; apply: eq_bigr => k _; rewrite mxE. Qed.

Lemma centring_sym : centring^T = centring.
Proof. by rewrite /centring linearB /= trmx1; congr (_ - _); apply/matrixP => i j; rewrite !mxE. Qed.

Lemma centring_idem : centring *m centring = centring.
Proof.
rewrite {1}/centring mulmxBl mul1mx (_ : _ *m centring = 0) ?subr0 //.
apply/matrixP => i j; rewrite const_mulr mxE /centring.
rewrite (eq_bigr (fun k => (k == j)%:R - n%:R^-1)) => [|k _]; last by rewrite !mxE.
rewrite sumrB sumr_const card_ord -natr_sum (bigD1 j) //= eqxx big1 ?addn0 => [|k /negbTE ->//].
by rewrite -[n%:R^-1 *+ n]mulr_natl mulfV // subrr mul0r.
Qed.

Lemma centre_centred M : centred (centre M).
Proof.
have z (A : 'M[R]_n) : (forall i, \sum_j (A *m centring) i j = 0).
  move=> i; have : A *m centring *m (const_mx n%:R^-1 : 'M[R]_n) = 0.
    rewrite -mulmxA (_ : centring *m _ = 0) ?mulmx0 // -[const_mx _](subKr 1%:M) -/centring.
    by rewrite mulmxBr mulmx1 centring_idem subrr.
  move/matrixP => /(_ i i); rewrite const_mull mxE => /eqP.
  by rewrite mulf_eq0 invr_eq0 (negbTE n0) orbF => /eqP.
split=> [i|j]; first exact: z.
have e : (M *m centring)^T *m centring = (centre M)^T.
  by rewrite /centre -mulmxA [in RHS]trmx_mul centring_sym.
rewrite -[RHS](z (M *m centring)^T j) e; apply: eq_bigr => i _.
by rewrite [RHS]mxE.
Qed.

Lemma centre_id M : centred M -> centre M = M.
Proof.
move=> [rows cols]; rewrite /centre /centring mulmxBl mul1mx mulmxBr mulmx1.
have -> : const_mx n%:R^-1 *m M = 0 :> 'M[R]_n.
  by apply/matrixP => i j; rewrite const_mulr cols mul0r mxE.
rewrite subr0 (_ : M *m _ = 0) ?subr0 //.
by apply/matrixP => i j; rewrite const_mull rows mul0r mxE.
Qed.

Lemma sqF_centre M : sqF (centre M) <= sqF M.
Proof.
have half (A : 'M[R]_n) : sqF (centring *m A) <= sqF A.
  rewrite {1}/sqF dotF_adj centring_sym mulmxA centring_idem.
  exact: sqF_contract centring_sym centring_idem.
rewrite /centre -sqF_tr trmx_mul centring_sym; apply: le_trans (half _) _.
by rewrite sqF_tr.
Qed.

Lemma targetE s : target s = centre (perm_mx s).
Proof.
have cP : const_mx n%:R^-1 *m perm_mx s = const_mx n%:R^-1 :> 'M[R]_n.
  apply/matrixP => i j; rewrite const_mulr (bigD1 ((s^-1)%g j)) //= big1 => [|k kj].
    by rewrite !mxE permKV eqxx addr0 mul1r.
  by rewrite !mxE -(inj_eq (@perm_inj _ s^-1)) permK (negbTE kj).
have Pc : perm_mx s *m const_mx n%:R^-1 = const_mx n%:R^-1 :> 'M[R]_n.
  apply/matrixP => i j; rewrite const_mull (bigD1 (s i)) //= big1 => [|k ki].
    by rewrite !mxE eqxx addr0 mul1r.
  by rewrite !mxE eq_sym (negbTE ki).
have cc : const_mx n%:R^-1 *m centring = 0 :> 'M[R]_n.
  rewrite -[const_mx _](subKr (1%:M : 'M[R]_n)) -/centring.
  by rewrite mulmxBl mul1mx centring_idem subrr.
rewrite /centre {1}/centring mulmxBl mul1mx cP mulmxBl cc subr0 /centring.
by rewrite mulmxBr mulmx1 Pc.
Qed.

Lemma dotF_target M s : dotF M (target s) = dotF (centre M) (perm_mx s).
Proof.
have tr (A B C : 'M[R]_n) : dotF A (B *m C) = dotF (A *m C^T) B.
  by rewrite /dotF trmx_mul !mulmxA.
by rewrite targetE /centre tr -[in RHS]mulmxA [RHS]dotF_adj !centring_sym.
Qed.

(* |P_s - J/n|^2 = n - 1 *)
(* So a new adapter says nothing of the relabelling to such a prompt. *)
Corollary unseen_prompts_get_nothing m (F : 'M[R]_(m, n)) (f : 'cV[R]_m) (a b kappa : R) s :
  gram F \in unitmx -> gram F = a%:M + b *: const_mx 1 -> F^T *m f = kappa *: const_mx 1 ->
  a + b * n%:R != 0 -> edit F (target s) *m f = 0.
Proof.
move=> gu gE fE s0; rewrite (unseen_prompts_get_the_mean _ gu gE fE s0).
have [rows _] : centred (target s) by rewrite targetE; apply: centre_centred.
suff -> : target s *m (const_mx 1 : 'cV[R]_n) = 0 by rewrite scaler0.
apply/colP => i; rewrite [LHS]mxE mxE -[RHS](rows i).
by apply: eq_bigr => j _; rewrite [const_mx _ _ _]mxE mulr1.
Qed.

Lemma sqF_target s : sqF (target s) = n.-1%:R.
Proof.
rewrite {1}/sqF dotF_target centre_id; last first.
  by rewrite targetE; apply: centre_centred.
rewrite dotF_perm (eq_bigr (fun=> 1 - n%:R^-1)) => [|i _].
  by rewrite sumr_const card_ord -[_ *+ n]mulr_natl mulrBr mulfV // mulr1 nS addrK.
by rewrite !mxE eqxx.
Qed.

Variables (K : nat) (U : 'I_K -> 'M[R]_n).
Definition share s : R := captured U (target s) / sqF (target s).

Lemma mean_share_of_parts : mean_over share = (\sum_a sqF (centre (U a))) / n.-1%:R ^+ 2.
Proof.
transitivity ((\sum_a mean_over (fun s => dotF (centre (U a)) (perm_mx s) ^+ 2)) / n.-1%:R).
  rewrite -mulr_suml exchange_big /= mulrAC; congr (_ / _); rewrite mulr_suml.
  apply: eq_bigr => s _; rewrite /share sqF_target; congr (_ / _).
  by apply: eq_bigr => a _; rewrite dotF_target.
rewrite expr2 invfM mulrA; congr (_ / _); rewrite mulr_suml; apply: eq_bigr => a _.
by apply: mean_square_overlap; apply: centre_centred.
Qed.

(* RECYCLED EQUALS RANDOM.  Any K orthonormal directions that do not depend on s and have
   row and column sums 0, wherever they come from, capture K / (n-1)^2 of the target on
   average over the relabellings s. *)
Theorem recycled_equals_random : orthonormal U -> (forall a, centred (U a)) ->
  mean_over share = K%:R / n.-1%:R ^+ 2.
Proof.
move=> on cU; rewrite mean_share_of_parts (eq_bigr (fun=> 1)) => [|a _].
  by rewrite sumr_const card_ord.
by rewrite centre_id // /sqF on eqxx.
Qed.

(* Directions outside that space capture less, never more. *)
Theorem recycled_at_most_random : orthonormal U -> mean_over share <= K%:R / n.-1%:R ^+ 2.
Proof.
move=> on; rewrite mean_share_of_parts ler_wpmul2r ?invr_ge0 ?exprn_ge0 ?ler0n //.
rewrite -[K in leRHS]card_ord -sum1_card natr_sum; apply: ler_sum => a _.
by apply: le_trans (sqF_centre _) _; rewrite /sqF on eqxx.
Qed.

End Mean.
