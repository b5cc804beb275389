(* Where Theorem 3 fails as printed (section 5a): with K facts for each adapter
   every CAT weighting is wrong on all K two-hop prompts, and linear merging of the
   same least-norm adapters is right on all K in one gauge, wrong in the others. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules OneFactMerging ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section LinComposes.
Variables (R : realFieldType) (n m K : nat).
Notation oh := (oh R).
Variables (W : 'M[R]_(n, m)) (R1 R2 : 'M[R]_(m, K)) (f : 'I_K -> 'cV[R]_m).
Variables (y y0 z a : 'I_K -> 'I_n) (b : 'I_K -> 'I_n) (al g : R).

Hypotheses (zI : injective z) (yI : injective y).
Hypotheses (zy : forall i j, z i != y j) (zy0 : forall i j, z i != y0 j).
Hypotheses (za : forall i j, z i != a j) (bz : forall i j, b i != z j).
Hypotheses (by_ : forall i j, b i != y j).
Hypothesis base : forall i, W *m f i = oh (b i).
Hypothesis ov1 : forall i, R1^T *m f i = al *: delta_mx i 0.
Hypothesis ov2 : forall i, R2^T *m f i = const_mx g.

Lemma targets_apply (p q : 'I_K -> 'I_n) (h : 'cV[R]_K) e :
  (targets R p q *m h) e 0 =
  \sum_j (e == p j)%:R * h j 0 - \sum_j (e == q j)%:R * h j 0.
Proof.
rewrite mxE -sumrB; apply: eq_bigr => j _.
by rewrite mxE mulrBl.
Qed.

Lemma sum_ind_ge0 (q : 'I_K -> 'I_n) (h : 'cV[R]_K) e :
  (forall j, 0 <= h j 0) -> 0 <= \sum_j (e == q j)%:R * h j 0.
Proof. by move=> h0; apply: sumr_ge0 => j _; rewrite mulr_ge0 // ler0n. Qed.

Lemma sum_ind_le (q : 'I_K -> 'I_n) (h : 'cV[R]_K) (c : R) e :
  injective q -> 0 <= c -> (forall j, h j 0 <= c) ->
  \sum_j (e == q j)%:R * h j 0 <= c.
Proof.
move=> qI c0 hc; case: (pickP (fun j => e == q j)) => [j /eqP ->|none].
  rewrite (eq_bigr (fun l => (j == l)%:R * h l 0)) ?sum_delta // => l _.
  by rewrite (inj_eq qI).
by rewrite big1 // => j _; rewrite none mul0r.
Qed.

Lemma sum_ind_none (q : 'I_K -> 'I_n) (h : 'cV[R]_K) e :
  (forall j, e != q j) -> \sum_j (e == q j)%:R * h j 0 = 0.
Proof. by move=> ne; rewrite big1 // => j _; rewrite (negbTE (ne j)) mul0r. Qed.

Theorem lin_composes (a1 a2 : R) i :
  0 < a1 < a2 -> 0 < al -> 0 <= g -> 1 < a2 * (a1 * al + a2 * g) ->
  top1 ((W + lin a1 a2 (targets R y y0) R1 (targets R z a) R2) *m f i) (z i).
Proof.
move=> /andP[a10 a12] al0 g0 big1h; have a20 : 0 < a2 by apply: lt_trans a12.
pose h : 'cV[R]_K := a1 *: (al *: delta_mx i 0) + a2 *: const_mx g.
pose hm := a1 * al + a2 * g.
have hE j : h j 0 = a1 * (al * (j == i)%:R) + a2 * g.
  by rewrite !mxE eqxx andbT.
have h0 j : 0 <= h j 0.
  by rewrite hE addr_ge0 // ?mulr_ge0 ?ler0n // ltW.
have hhm j : h j 0 <= hm.
  rewrite hE ler_add2r ler_pmul2l // ler_pimulr ?(ltW al0) //.
  by case: (j == i); rewrite ?lexx ?ler01.
have him : h i 0 = hm by rewrite hE eqxx mulr1.
have hm0 : 0 < hm by rewrite -(pmulr_rgt0 _ a20) (lt_trans ltr01).
have O e : ((W + lin a1 a2 (targets R y y0) R1 (targets R z a) R2) *m f i) e 0 =
   (e == b i)%:R + a1 * (targets R y y0 *m h) e 0 + a2 * (targets R z a *m h) e 0.
  rewrite mulmxDl base /lin -mulmxA linearD /= !linearZ /= [(_ + _) *m f i]mulmxDl.
  rewrite -![_ *: _ *m f i]scalemxAl ov1 ov2 -/h mulmxDl.
  by rewrite -![_ *: _ *m h]scalemxAl !addcE !scalecE ohE addrA.
have Oz : ((W + lin a1 a2 (targets R y y0) R1 (targets R z a) R2) *m f i) (z i) 0
    = a2 * hm.
  rewrite O eq_sym (negbTE (bz i i)) add0r !targets_apply.
  rewrite (@sum_ind_none y) // (@sum_ind_none y0) // (@sum_ind_none a) // !subr0 mulr0 add0r.
  rewrite (eq_bigr (fun l => (i == l)%:R * h l 0)) ?sum_delta ?him // => l _.
  by rewrite (inj_eq zI).
apply/top1P => e ezi; rewrite Oz O !targets_apply.
case: (pickP (fun j => e == z j)) => [j /eqP ej|nez].
  have ij : j != i by apply: contraNneq ezi => <-; rewrite ej.
  rewrite ej [_ == b i]eq_sym (negbTE (bz i j)) add0r.
  rewrite (@sum_ind_none y) // (@sum_ind_none y0) // (@sum_ind_none a) // !subr0 mulr0 add0r.
  rewrite (eq_bigr (fun l => (j == l)%:R * h l 0)) ?sum_delta; last first.
    by move=> l _; rewrite (inj_eq zI).
  rewrite ltr_pmul2l // hE (negbTE ij) !mulr0 add0r /hm.
  by rewrite ltr_addr mulr_gt0.
have nez' j : e != z j by rewrite nez.
rewrite (@sum_ind_none z) // sub0r mulrN.
apply: (le_lt_trans (y := (e == b i)%:R + a1 * \sum_j (e == y j)%:R * h j 0)).
  rewrite -addrA ler_add2l mulrBr -addrA ger_addl -opprD oppr_le0.
  by rewrite addr_ge0 // mulr_ge0 ?sum_ind_ge0 // ltW.
have [->|eb] := eqVneq e (b i).
  by rewrite (@sum_ind_none y) // mulr0 addr0.
rewrite add0r; apply: (le_lt_trans (y := a1 * hm)); last by rewrite ltr_pmul2r.
by rewrite ler_pmul2l // sum_ind_le // ltW.
Qed.

End LinComposes.

Section Gauge.
Variables (R : realFieldType) (n m K : nat).

Lemma lin_common_scale (a1 a2 la : R) (B1 B2 : 'M[R]_(n, K)) (A1 A2 : 'M[R]_(m, K)) :
  la != 0 ->
  lin a1 a2 (la *: B1) (la^-1 *: A1) (la *: B2) (la^-1 *: A2) = lin a1 a2 B1 A1 B2 A2.
Proof.
move=> la0; rewrite /lin !scalerA ![_ * la]mulrC ![_ * la^-1]mulrC -!scalerA.
rewrite -!scalerDr [(la^-1 *: _)^T]linearZ /= -scalemxAl -scalemxAr scalerA.
by rewrite divff // scale1r.
Qed.

Lemma perm_mx_orth (s : 'S_K) : perm_mx s *m (perm_mx s)^T = 1%:M :> 'M[R]_K.
Proof. by rewrite tr_perm_mx -perm_mxM mulgV perm_mx1. Qed.

(* Orthonormal stored prompts, pairwise different answers: the aligned factors
   are global minimisers of the paper's regulariser, of every inner rank. *)
Theorem aligned_minimal (F : 'M[R]_(m, K)) (z a : 'I_K -> 'I_n) (la : R) s
    (A : 'M[R]_(n, s)) (B : 'M[R]_(m, s)) :
  F^T *m F = 1%:M -> injective z -> injective a -> (forall i j, z i != a j) ->
  la ^+ 4 = 2%:R^-1 ->
  feasible F (targets R z a) A B ->
  cost (la *: targets R z a) (la^-1 *: F) <= cost A B.
Proof.
move=> FF zI aI za la4 fAB.
have la0 : la != 0.
  apply/eqP => l0; move: la4; rewrite l0 expr0n /= => /eqP.
  by rewrite eq_sym invr_eq0 pnatr_eq0.
have gu : gram F \in unitmx by rewrite /gram FF unitmx1.
have TT : (targets R z a)^T *m targets R z a = 2%:R%:M.
  apply/matrixP => i j; rewrite !mxE.
  rewrite (eq_bigr (fun e => (e == z i)%:R * (e == z j)%:R
                           + (e == a i)%:R * (e == a j)%:R)) => [|e _]; last first.
    rewrite !mxE; have [->|_] := eqVneq e (z i).
      by rewrite (negbTE (za _ _)) (negbTE (za _ _)) !subr0 mul0r addr0.
    have [->|_] := eqVneq e (a i); last by rewrite subrr !mul0r addr0.
    by rewrite eq_sym (negbTE (za _ _)) !sub0r mul0r add0r mulrNN.
  rewrite big_split /= (bigD1 (z i)) //= big1 => [|e /negbTE->]; last by rewrite mul0r.
  rewrite (bigD1 (a i)) //= big1 => [|e /negbTE->]; last by rewrite mul0r.
  rewrite !eqxx !mul1r !addr0 !(inj_eq zI, inj_eq aI) -mulr2n.
  by case: eqP; rewrite ?mulr1n // mulr0n mul0rn.
have sv : (la^-1 *: F)^T *m (la^-1 *: F) = (la^-1 ^+ 2)%:M.
  rewrite [(la^-1 *: F)^T]linearZ /= -scalemxAl -scalemxAr scalerA FF.
  by rewrite scalemx1 expr2.
apply: (balanced_factors_are_minimal gu) fAB; rewrite ?sv.
- rewrite [(la^-1 *: F)^T]linearZ /= -scalemxAl -scalemxAr scalerA divff //.
  by rewrite scale1r /edit /gram FF invmx1 mulmx1.
- rewrite [(la *: _)^T]linearZ /= -scalemxAl -scalemxAr scalerA TT.
  rewrite scale_scalar_mx; congr (_%:M).
  have l2 : la ^+ 2 != 0 by rewrite expf_neq0.
  apply: (mulIf l2); rewrite -exprMn mulVf // expr1n mulrAC -expr2 -exprD la4.
  by rewrite mulVf // pnatr_eq0.
by rewrite unitmxE det_scalar unitfE !expf_neq0 // invr_eq0.
Qed.

End Gauge.

Section Witness.
Variables (R : realFieldType) (n K : nat).
Notation oh := (oh R).
Notation m := (K + (K + K))%N.
Variables (y y0 z a b : 'I_K -> 'I_n).

Definition ohs (q : 'I_K -> 'I_n) : 'M[R]_(n, K) := \matrix_(e, j) (e == q j)%:R.

Definition R1 : 'M[R]_(m, K) := col_mx 1%:M 0.
Definition R2 : 'M[R]_(m, K) := col_mx 0 (col_mx 1%:M 0).
Definition fx (i : 'I_K) : 'cV[R]_m :=
  col_mx (delta_mx i 0) (col_mx (const_mx 1) (delta_mx i 0)).
Definition W : 'M[R]_(n, m) :=
  row_mx (ohs y0) (row_mx (ohs a) (ohs b - ohs y0 - ohs a *m const_mx 1)).

Lemma ohs_col q i : ohs q *m delta_mx i 0 = oh (q i).
Proof. by rewrite -colE; apply/colP => e; rewrite !mxE andbT. Qed.

Lemma W_base i : W *m fx i = oh (b i).
Proof.
rewrite /W /fx !mul_row_col !mulmxBl !ohs_col -mulmxA.
rewrite (_ : const_mx 1 *m delta_mx i 0 = const_mx 1).
  by set X := ohs a *m _; rewrite [X + _]addrC subrK addrC subrK.
by rewrite -colE; apply/colP => e; rewrite !mxE.
Qed.

Lemma W_R1 : W *m R1 = ohs y0.
Proof. by rewrite /W /R1 mul_row_col mulmx1 mulmx0 addr0. Qed.

Lemma W_R2 : W *m R2 = ohs a.
Proof. by rewrite /W /R2 !mul_row_col mulmx1 !mulmx0 addr0 add0r. Qed.

Lemma R1_orth : R1^T *m R1 = 1%:M.
Proof. by rewrite /R1 tr_col_mx mul_row_col trmx1 mulmx1 mulmx0 addr0. Qed.

Lemma R2_orth : R2^T *m R2 = 1%:M.
Proof.
by rewrite /R2 !tr_col_mx !mul_row_col trmx1 mulmx1 !mulmx0 addr0 add0r.
Qed.

Lemma R1_fx i : R1^T *m fx i = 1 *: delta_mx i 0.
Proof.
by rewrite /R1 /fx tr_col_mx mul_row_col trmx1 mul1mx trmx0 mul0mx addr0 scale1r.
Qed.

Lemma R2_fx i : R2^T *m fx i = const_mx 1.
Proof.
rewrite /R2 /fx !tr_col_mx !mul_row_col trmx1 mul1mx !trmx0 !mul0mx.
by rewrite addr0 add0r.
Qed.

Lemma fx_nonneg i : nonneg (fx i).
Proof.
move=> r; rewrite /fx !mxE; case: (split r) => r'; rewrite !mxE ?ler0n //.
by case: (split r') => r''; rewrite !mxE ?ler01 ?ler0n.
Qed.

Hypotheses (K2 : (1 < K)%N) (zI : injective z) (yI : injective y).
Hypotheses (zy : forall i j, z i != y j) (zy0 : forall i j, z i != y0 j).
Hypotheses (za : forall i j, z i != a j) (bz : forall i j, b i != z j).
Hypotheses (by_ : forall i j, b i != y j).

(* the two adapters of eq. (23) *)
Notation D1 := (edit R1 (targets R y y0)).
Notation D2 := (edit R2 (targets R z a)).

(* CAT, any weights: none of the K > 1 prompts is right. *)
Theorem cat_zero_of_K (a1 a2 : R) i :
  ~~ top1 ((W + (a1 *: D1 + a2 *: D2)) *m fx i) (z i).
Proof.
have gu : gram R2 \in unitmx by rewrite /gram R2_orth unitmx1.
have g1 : gram R2 *m const_mx 1 = 1 *: const_mx 1 :> 'cV[R]_K.
  by rewrite /gram R2_orth mul1mx scale1r.
have fk : R2^T *m fx i = 1 *: const_mx 1 by rewrite R2_fx scale1r.
apply: (eq25_never_top1 a1 a2 i K2 zI za (bz i) (W_base i) _ gu (oner_neq0 _) g1 fk).
move=> j; rewrite /edit /gram R1_orth invmx1 mulmx1 -mulmxA R1_fx scale1r.
rewrite targets_apply !big1 ?subr0 // => l _.
  by rewrite (negbTE (zy0 _ _)) mul0r.
by rewrite (negbTE (zy _ _)) mul0r.
Qed.

(* Linear merging with weights (1, 2), columns paired x_j y_j z_j: all K are right. *)
Theorem lin_K_of_K (la : R) : la != 0 -> forall i,
  top1 ((W + lin 1 2%:R (la *: targets R y y0) (la^-1 *: R1)
                        (la *: targets R z a) (la^-1 *: R2)) *m fx i) (z i).
Proof.
move=> la0 i; rewrite lin_common_scale //.
apply: (lin_composes (f := fx) (b := b) (al := 1) (g := 1)) => //; rewrite ?ltr01 ?ler01 //.
- exact: W_base.
- exact: R1_fx.
- exact: R2_fx.
- by rewrite ltr1n.
by rewrite !mulr1 -(natrD _ 1 2) -natrM ltr1n.
Qed.

(* gauge of adapter 2 permuted by s: same matrix D2, same cost *)
Definition T2 (s : 'S_K) := targets R z a *m perm_mx s.
Definition Q2 (s : 'S_K) := R2 *m perm_mx s.

(* Permuting adapter 2's columns changes neither its product nor its cost. *)
Theorem permuted_same_adapter s : T2 s *m (Q2 s)^T = D2 /\
  cost (T2 s) (Q2 s) = cost (targets R z a) R2.
Proof.
have [-> ->] := orthogonal_gauge (targets R z a) R2 (perm_mx_orth R s).
by rewrite /edit /gram R2_orth invmx1 mulmx1.
Qed.

(* With adapter 2's columns permuted by s, prompt i is wrong wherever s moves i, for all
   weights >= 0. *)
Theorem lin_wrong_gauge (s : 'S_K) (a1 a2 : R) i : 0 <= a1 -> 0 <= a2 -> s i != i ->
  ~~ top1 ((W + lin a1 a2 (targets R y y0) R1 (T2 s) (Q2 s)) *m fx i) (z i).
Proof.
move=> a10 a20 si.
have h1 l j : targets R y y0 (z l) j = 0.
  by rewrite mxE (negbTE (zy _ _)) (negbTE (zy0 _ _)) subrr.
have h2 l j : T2 s (z l) j = (if s l == j then 1 else 0).
  rewrite /T2 -[X in perm_mx X]invgK -col_permE mxE targetsE //.
  by rewrite -[in LHS](inj_eq (@perm_inj _ s)) permKV; case: eqP.
have h3 : (Q2 s)^T *m fx i = const_mx 1.
  rewrite /Q2 trmx_mul -mulmxA R2_fx; apply/colP => j; rewrite tr_perm_mx -row_permE.
  by rewrite !mxE.
have [e _] := lin_ranks_by_first_hop a1 a2 i ((s^-1)%g i) h1 h2 (R1_fx i) h3.
apply/negP => /top1P /(_ (z ((s^-1)%g i))); rewrite (inj_eq zI).
rewrite -(inj_eq (@perm_inj _ s)) permKV [i == _]eq_sym => /(_ si).
rewrite !mulmxDl W_base !addcE !ohE ![_ == b i]eq_sym !(negbTE (bz _ _)) !add0r.
rewrite -subr_gt0 -/(margin _ _ _) e permKV scale1r !mxE eqxx (negbTE si) /=.
by rewrite subr0 mulr1 sub0r mulrN1 oppr_gt0 ltNge mulr_ge0.
Qed.

End Witness.
