(* How many adapters a merge holds.

   *Sum.*  On a prompt of its own adapter, all the others together leak l onto each of
   their answers; rr e counts how many of their facts have the answer e, less those that
   had it as old answer.  Known facts survive at weight w iff w > 1/2 and l rr e < 1 for
   every other answer e: however many adapters there are, if their answers differ and l < 1.
   *Mean* of M adapters: w = 1/M, so known facts survive in one adapter only, and fresh ones
   in as many as the sum.
   *Rank.*  Scores of k answers on k prompts, 1 on the right one and at most eps elsewhere,
   need rank r with k (1 - r eps^2) <= r (1 - eps^2): r facts if eps = 0.  By the answer
   alone (argmax) rank 2 holds any number.  And dropping the last singular direction of one
   adapter, its mean feature, costs every fact 1/k and no more. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- sums and means --------------------------------------------------------- *)
Section Sums.
Variables (R : realFieldType) (n m : nat).
Notation oh := (oh R).
Variables (W D D' : 'M[R]_(n, m)) (f : 'cV[R]_m) (y y0 : 'I_n) (l : R) (rr : 'cV[R]_n).
(* D' : all the other adapters *)
Hypotheses (yy0 : y != y0) (ry : rr y 0 = 0) (ry0 : rr y0 0 = 0).
Hypothesis others : D' *m f = l *: rr.

(* Known facts: w > 1/2, and no other answer is leaked onto as much as y is written. *)
Theorem sum_holds_iff (w : R) : W *m f = oh y0 -> D *m f = oh y - oh y0 -> 0 < w ->
  top1 ((W + w *: (D + D')) *m f) y =
    (1 < 2%:R * w) && [forall e, (e != y) && (e != y0) ==> (l * rr e 0 < 1)].
Proof.
move=> Wf Df w0.
have O e : ((W + w *: (D + D')) *m f) e 0 =
    (e == y0)%:R + w * ((e == y)%:R - (e == y0)%:R + l * rr e 0).
  by rewrite mulmxDl -scalemxAl mulmxDl Wf Df others !addcE !scalecE addcE subcE scalecE !ohE.
have Oy : ((W + w *: (D + D')) *m f) y 0 = w.
  by rewrite O eqxx (negbTE yy0) ry mulr0 addr0 subr0 mulr1 add0r.
have Oy0 : ((W + w *: (D + D')) *m f) y0 0 = 1 - w.
  by rewrite O eqxx eq_sym (negbTE yy0) ry0 mulr0 addr0 sub0r mulrN1.
have half : (1 - w < w) = (1 < 2%:R * w) by rewrite ltr_subl_addr mulr2n mulrDl mul1r.
apply/top1P/andP => [top|[h /forallP rest] e ey].
  split; first by have := top y0; rewrite eq_sym yy0 Oy Oy0 half => /(_ isT).
  apply/forallP => e; apply/implyP => /andP[ey ey0]; have := top e ey.
  by rewrite Oy O (negbTE ey) (negbTE ey0) subrr !add0r gtr_pmulr.
have [->|ey0] := eqVneq e y0; first by rewrite Oy Oy0 half.
rewrite Oy O (negbTE ey) (negbTE ey0) subrr !add0r gtr_pmulr //.
by have := rest e; rewrite ey ey0.
Qed.

(* Answers that all differ: any number of adapters, as long as l < 1. *)
Corollary sum_holds_any_number (w : R) : W *m f = oh y0 -> D *m f = oh y - oh y0 ->
  1 < 2%:R * w -> 0 <= l < 1 -> (forall e, rr e 0 <= 1) ->
  top1 ((W + w *: (D + D')) *m f) y.
Proof.
move=> Wf Df w2 /andP[l0 l1] le; have w0 : 0 < w.
  by rewrite -(pmulr_rgt0 _ (ltr0n R 2)) (lt_trans ltr01).
rewrite sum_holds_iff // w2; apply/forallP => e; apply/implyP => _.
by apply: le_lt_trans l1; rewrite -[leRHS]mulr1 ler_wpmul2l.
Qed.

(* The mean of M >= 2 adapters holds no known fact. *)
Corollary mean_holds_one (M : nat) : W *m f = oh y0 -> D *m f = oh y - oh y0 -> (1 < M)%N ->
  ~~ top1 ((W + M%:R^-1 *: (D + D')) *m f) y.
Proof.
move=> Wf Df M1; have M0 : 0 < M%:R :> R by rewrite ltr0n ltnW.
rewrite sum_holds_iff ?invr_gt0 // negb_and -leNgt ler_pdivr_mulr // mul1r ler_nat.
by rewrite M1.
Qed.

(* Fresh facts: the weight does not matter, so the mean holds what the sum holds. *)
Theorem fresh_sum_holds_iff (w : R) : W *m f = 0 -> D *m f = oh y -> 0 < w ->
  top1 ((W + w *: (D + D')) *m f) y = [forall e, (e != y) ==> (l * rr e 0 < 1)].
Proof.
move=> Wf Df w0.
have O e : ((W + w *: (D + D')) *m f) e 0 = w * ((e == y)%:R + l * rr e 0).
  by rewrite mulmxDl -scalemxAl mulmxDl Wf Df others add0r scalecE addcE scalecE !ohE.
have Oy : ((W + w *: (D + D')) *m f) y 0 = w by rewrite O eqxx ry mulr0 addr0 mulr1.
apply/top1P/forallP => [top e|rest e ey].
  by apply/implyP => ey; have := top e ey; rewrite Oy O (negbTE ey) add0r gtr_pmulr.
by have := rest e; rewrite ey Oy O (negbTE ey) add0r gtr_pmulr.
Qed.

End Sums.

(* ---- rank ------------------------------------------------------------------- *)
Section Rank.
Variables (R : realFieldType) (k : nat).
Implicit Types O : 'M[R]_k.

(* (tr O)^2 <= rank |O|^2 *)
Lemma trace_rank O : \tr O ^+ 2 <= (\rank O)%:R * sqF O.
Proof.
pose A := col_base O; pose G := gram A.
have Gu : G \in unitmx.
  rewrite -row_free_unit -kermx_eq0; apply/eqP/row_matrixP => i; rewrite row0.
  set v := row i _; have vG : v *m G = 0 by apply/sub_kermxP; rewrite row_sub.
  have Av : A *m v^T = 0.
    apply/eqP; rewrite -sqF_eq0 /sqF dotF_adj mulmxA -/(gram A) -/G.
    by rewrite -[G]trmxK gram_sym -trmx_mul vG trmx0 dotF0r.
  have [B AB] := row_fullP (col_base_full O).
  by rewrite -[v]trmxK -[v^T]mul1mx -AB -mulmxA Av mulmx0 trmx0.
have PO : proj A *m O = O.
  have OE : A *m row_base O = O by rewrite /A mulmx_base.
  by rewrite -[X in _ *m X = _]OE mulmxA projF.
have tr : \tr O = dotF (proj A) O^T by rewrite /dotF trmxK PO.
have sq : sqF (proj A) = (\rank O)%:R.
  rewrite /sqF /dotF proj_sym // proj_idem // /proj mxtrace_mulC mulmxA -/(gram A).
  by rewrite mulmxV // mxtrace1.
by rewrite tr -sq -[sqF O]sqF_tr; apply: cauchy_schwarz.
Qed.

(* Scores of rank r: 1 on the right answers, at most eps in size on the others. *)
Theorem rank_capacity O (r : nat) (eps : R) : (0 < k)%N -> (\rank O <= r)%N -> 0 <= eps ->
  (forall i, O i i = 1) -> (forall i j, i != j -> `|O i j| <= eps) ->
  k%:R * (1 - r%:R * eps ^+ 2) <= r%:R * (1 - eps ^+ 2).
Proof.
move=> k0 rk e0 diag off; have K : 0 < k%:R :> R by rewrite ltr0n.
have tr : \tr O = k%:R.
  by rewrite /mxtrace (eq_bigr (fun=> 1)) ?sumr_const ?card_ord // => i _.
have row i : \sum_j O i j ^+ 2 <= 1 + (k%:R - 1) * eps ^+ 2.
  rewrite (bigD1 i) //= diag expr1n ler_add2l.
  apply: (@le_trans _ _ (\sum_(j < k | j != i) eps ^+ 2)).
    apply: ler_sum => j ji; rewrite -real_normK ?num_real // ler_pexpn2r ?nnegrE //.
    by rewrite off // eq_sym.
  rewrite sumr_const (@eq_card _ _ (predC1 i)) // cardC1 card_ord -mulr_natl.
  by rewrite ler_wpmul2r ?exprn_ge0 // -subn1 natrB.
have all : sqF O <= k%:R * (1 + (k%:R - 1) * eps ^+ 2).
  rewrite sqFE mulr_natl -[X in _ *+ X](card_ord k) -sumr_const.
  by apply: ler_sum => i _.
have := trace_rank O; rewrite tr => le.
have : k%:R ^+ 2 <= r%:R * (k%:R * (1 + (k%:R - 1) * eps ^+ 2)).
  apply: le_trans le _; apply: ler_pmul; rewrite ?ler0n ?sqF_ge0 ?ler_nat //.
rewrite expr2 mulrCA ler_pmul2l // -subr_ge0 => h; rewrite -subr_ge0.
apply: le_trans h _; rewrite le_eqVlt; apply/orP; left; apply/eqP; ring.
Qed.

(* No off-diagonal at all: rank k for k facts. *)
Corollary exact_scores_need_rank O (r : nat) : (0 < k)%N -> (\rank O <= r)%N ->
  (forall i, O i i = 1) -> (forall i j, i != j -> O i j = 0) -> (k <= r)%N.
Proof.
move=> k0 rk diag off; rewrite -(ler_nat R).
have := @rank_capacity O r 0 k0 rk (lexx _) diag.
by rewrite expr0n mulr0 !subr0 !mulr1; apply=> i j ij; rewrite off // normr0.
Qed.

(* By the answer alone rank 2 is enough for any number of facts. *)
Theorem rank_two_holds_every_answer : exists O,
  (\rank O <= 2)%N /\ forall i j, j != i -> O i j < O i i.
Proof.
pose x (i : 'I_k) : R := i%:R.
pose A : 'M[R]_(k, 2) := \matrix_(i, c) (if c == 0 then 2%:R * x i else 1).
pose B : 'M[R]_(2, k) := \matrix_(c, j) (if c == 0 then x j else - x j ^+ 2).
exists (A *m B); split; first by apply: leq_trans (mxrankM_maxr _ _) (rank_leq_row _).
have E i j : (A *m B) i j = x i ^+ 2 - (x i - x j) ^+ 2.
  by rewrite mxE !big_ord_recl big_ord0 !mxE /=; ring.
move=> i j ji; rewrite !E ltr_add2l ltr_opp2 subrr expr0n /= exprn_even_gt0 //=.
by rewrite subr_eq0 /x eqr_nat eq_sym.
Qed.

End Rank.

(* ---- dropping the last direction of one adapter ------------------------------ *)
Section Truncation.
Variables (R : realFieldType) (n m k : nat) (F : 'M[R]_(m, k)) (T : 'M[R]_(n, k)) (a b : R).
Hypotheses (gu : gram F \in unitmx) (k0 : (0 < k)%N) (a0 : 0 < a) (b0 : 0 <= b).
Hypothesis gramE : gram F = a%:M + b *: const_mx 1.
Notation one := (const_mx 1 : 'cV[R]_k).
(* The mean feature, up to length.  Where changes are orthogonal and of one length, it is the
   direction that is stretched least. *)
Definition mean_direction : 'cV[R]_m := F *m one.

Let q0 : a + k%:R * b != 0.
Proof. by rewrite gt_eqF // ltr_paddr // mulr_ge0 ?ler0n. Qed.
Let kn : k%:R != 0 :> R. Proof. by rewrite pnatr_eq0 -lt0n. Qed.

Lemma ones : one^T *m one = k%:R%:M.
Proof.
apply/matrixP => i j; rewrite !ord1 !mxE (eq_bigr (fun=> 1)) => [|l _]; last by rewrite !mxE mulr1.
by rewrite sumr_const card_ord eqxx.
Qed.

Lemma gram_one : gram F *m one = (a + k%:R * b) *: one.
Proof.
rewrite gramE mulmxDl mul_scalar_mx -scalemxAl scalerDl; congr (_ + _).
rewrite mulrC -scalerA; congr (_ *: _).
by apply/colP => i; rewrite !mxE mulr1 (eq_bigr (fun=> 1)) ?sumr_const ?card_ord // => j _; rewrite !mxE mulr1.
Qed.

(* The adapter without it stores the changes less their mean. *)
Theorem without_mean_direction :
  edit F T - (sqF mean_direction)^-1 *: (edit F T *m mean_direction *m mean_direction^T)
  = edit F (T - k%:R^-1 *: (T *m one *m one^T)).
Proof.
have Gi : invmx (gram F) *m one = (a + k%:R * b)^-1 *: one.
  by apply: (scalerI q0); rewrite scalerA mulfV // scale1r scalemxAr -gram_one mulKmx.
have sq : sqF mean_direction = k%:R * (a + k%:R * b).
  rewrite /sqF dotF_adj mulmxA -/(gram F) gram_one dotFZr /dotF mxtrace_mulC ones mxtrace_scalar.
  by rewrite mulr1n mulrC.
have -> : edit F T *m mean_direction = T *m one.
  by rewrite /mean_direction mulmxA edit_feasible.
have row : one^T *m invmx (gram F) *m F^T = (a + k%:R * b)^-1 *: mean_direction^T.
  rewrite -[one^T *m _]trmxK trmx_mul trmxK invgram_sym Gi linearZ /= -scalemxAl.
  by rewrite /mean_direction trmx_mul.
rewrite /edit !mulmxBl; congr (_ - _); rewrite -!scalemxAl -!mulmxA (mulmxA one^T) row.
by rewrite -!scalemxAr scalerA sq invfM mulrC.
Qed.

(* On its own prompts: the right answer has 1 - 1/k, the old one of a known fact 1/k. *)
Corollary truncated_by_one (W : 'M[R]_(n, m)) (y y0 : 'I_k -> 'I_n) (i : 'I_k) :
  T = targets R y y0 -> injective y -> injective y0 -> (forall j l, y j != y0 l) ->
  W *m col i F = oh R (y0 i) -> (2 < k)%N ->
  top1 ((W + edit F (T - k%:R^-1 *: (T *m one *m one^T))) *m col i F) (y i).
Proof.
move=> TE yI y0I apart Wi k3; have K : 0 < k%:R :> R by rewrite ltr0n.
have TO e : (T *m one) e 0 = \sum_j (e == y j)%:R - \sum_j (e == y0 j)%:R.
  by rewrite mxE -sumrB; apply: eq_bigr => j _; rewrite TE !mxE mulr1.
have O e : ((W + edit F (T - k%:R^-1 *: (T *m one *m one^T))) *m col i F) e 0 =
    (e == y i)%:R - k%:R^-1 * (\sum_j (e == y j)%:R - \sum_j (e == y0 j)%:R).
  have S : (T *m one *m one^T) e i = (T *m one) e 0.
    by rewrite [LHS]mxE big_ord1 [one^T _ _]mxE [one _ _]mxE mulr1.
  have Ti : T e i = (e == y i)%:R - (e == y0 i)%:R by rewrite TE mxE.
  rewrite mulmxDl Wi [col i F]colE mulmxA edit_feasible // -colE addcE ohE.
  have sub (X Y : 'M[R]_(n, k)) : (X - Y) e i = X e i - Y e i by rewrite !mxE.
  have scale c (X : 'M[R]_(n, k)) : (c *: X) e i = c * X e i by rewrite mxE.
  rewrite [col i _ _ _]mxE sub scale S TO Ti.
  by move: (e == y i)%:R (e == y0 i)%:R (k%:R^-1) (\sum_j _ - _) => p q s u; ring.
have hit (x : 'I_k -> 'I_n) j : injective x -> \sum_l (x j == x l)%:R = 1 :> R.
  move=> xI; rewrite (bigD1 j) //= eqxx big1 ?addr0 // => l lj.
  by rewrite (inj_eq xI) eq_sym (negbTE lj).
have miss (x : 'I_k -> 'I_n) e : (forall l, e != x l) -> \sum_l (e == x l)%:R = 0 :> R.
  by move=> ex; rewrite big1 // => l _; rewrite (negbTE (ex l)).
have Oy j : ((W + edit F (T - k%:R^-1 *: (T *m one *m one^T))) *m col i F) (y j) 0 =
    (j == i)%:R - k%:R^-1.
  by rewrite O (inj_eq yI) hit // miss // subr0 mulr1.
have small : k%:R^-1 < 1 - k%:R^-1 :> R.
  rewrite ltr_subr_addr -mulr2n -[_ *+ 2]mulr_natl ltr_pdivr_mulr // mul1r ltr_nat.
  exact: k3.
have ki : 0 < k%:R^-1 :> R by rewrite invr_gt0.
apply/top1P => e eyi; rewrite Oy eqxx.
have [j /eqP ej|ny] := pickP (fun j => e == y j).
  rewrite ej Oy; have -> : j == i = false by apply: contraNF eyi => /eqP <-; rewrite ej.
  by rewrite ltr_add2r ltr01.
rewrite O (negbTE eyi) (miss y) => [|j]; last by rewrite ny.
have [j /eqP ej|ny0] := pickP (fun j => e == y0 j).
  by rewrite ej hit // !sub0r mulrN1 opprK.
rewrite (miss y0) => [|j]; last by rewrite ny0.
by rewrite subrr mulr0 subrr (lt_trans ki).
Qed.

End Truncation.
