(* Arrow: adapters weighted prompt by prompt, w_l >= 0 with sum 1.  Its two forms are
   the weighted sum of products (PEFT) and the product of weighted sums (eq. 28).

   What is true of eq. 28, with its cross terms B_l A_l'^T:
   - known facts: the old answer stays, for any ranks and any gauge in which no
     own or cross term alone sends more than 1 to the new answer (eq28_known_fails);
     the balanced gauge of one fact and of orthonormal prompts is such a gauge;
   - fresh facts: in the gauge that pairs the columns right it answers all K two-hop
     prompts, where the sum of products answers none; in a permuted gauge of the
     same adapters it does not.  So Theorem 3 does not hold of eq. 28 as printed.

   The weights may depend on the prompt in any way: they are arguments here. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers.
From LoRA Require Import MergeRules OneFactMerging ManyFacts LinearComposes LabelBlindRules.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- sum of products ---------------------------------------------------- *)
Section Products.
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

End Products.

(* ---- eq. 28: any number of adapters, any rank, any gauge ----------------- *)
Section Factors.
Variables (R : realFieldType) (n m k s : nat).
Notation oh := (oh R).
Implicit Types (w : 'I_k -> R) (B : 'I_k -> 'M[R]_(n, s)) (A : 'I_k -> 'M[R]_(m, s)).

Definition eq28 w B A : 'M[R]_(n, m) := (\sum_l w l *: B l) *m (\sum_l w l *: A l)^T.

(* All own terms w_l^2 B_l A_l^T and all cross terms w_l w_l' B_l A_l'^T. *)
Theorem eq28_expand w B A :
  eq28 w B A = \sum_l \sum_l' (w l * w l') *: (B l *m (A l')^T).
Proof.
rewrite /eq28 linear_sum /= mulmx_suml; apply: eq_bigr => l _.
rewrite mulmx_sumr; apply: eq_bigr => l' _.
by rewrite linearZ /= -scalemxAl -scalemxAr scalerA.
Qed.

Lemma sum_entry (f : 'cV[R]_m) (F : 'I_k -> 'M[R]_(n, m)) e :
  ((\sum_l F l) *m f) e 0 = \sum_l (F l *m f) e 0.
Proof. by rewrite mulmx_suml summxE. Qed.

Lemma convex_le1 w (x : 'I_k -> R) : (forall l, 0 <= w l) -> \sum_l w l <= 1 ->
  (forall l, x l <= 1) -> \sum_l w l * x l <= 1.
Proof.
move=> w0 w1 x1; apply: le_trans w1; apply: ler_sum => l _.
by rewrite -[leRHS]mulr1 ler_wpmul2l.
Qed.

(* Known facts under eq. 28: no weights of sum at most 1 overtake the old answer. *)
Theorem eq28_known_fails (W : 'M[R]_(n, m)) (f : 'cV[R]_m) (b z : 'I_n) w B A :
  W *m f = oh b -> b != z ->
  (forall l j, B l b j = 0) ->
  (forall l l', (B l *m (A l')^T *m f) z 0 <= 1) ->
  (forall l, 0 <= w l) -> \sum_l w l <= 1 ->
  ~~ top1 ((W + eq28 w B A) *m f) z.
Proof.
move=> Wf bz Bb le1 w0 w1; apply/negP => /top1P /(_ b bz).
rewrite mulmxDl Wf !addcE !ohE eqxx [z == b]eq_sym (negbTE bz) add0r.
have -> : (eq28 w B A *m f) b 0 = 0.
  rewrite /eq28 -mulmxA mxE big1 // => j _.
  rewrite summxE big1 ?mul0r // => l _; by rewrite mxE Bb mulr0.
rewrite addr0 ltNge => /negP[]; rewrite eq28_expand sum_entry.
apply: le_trans (w1); apply: ler_sum => l _; rewrite -[leRHS]mulr1 sum_entry.
rewrite (eq_bigr (fun l' => w l * (w l' * (B l *m (A l')^T *m f) z 0))) => [|l' _].
  by rewrite -mulr_sumr ler_wpmul2l // convex_le1 // => l'; apply: le1.
by rewrite -scalemxAl scalecE mulrA.
Qed.

(* The same of the sum of products, so of the mean too. *)
Theorem products_known_fail (W : 'M[R]_(n, m)) (f : 'cV[R]_m) (b z : 'I_n) w
    (D : 'I_k -> 'M[R]_(n, m)) :
  W *m f = oh b -> b != z ->
  (forall l j, D l b j = 0) -> (forall l, (D l *m f) z 0 <= 1) ->
  (forall l, 0 <= w l) -> \sum_l w l <= 1 ->
  ~~ top1 ((W + \sum_l w l *: D l) *m f) z.
Proof.
move=> Wf bz Db le1 w0 w1; apply/negP => /top1P /(_ b bz).
rewrite mulmxDl Wf !addcE !ohE eqxx [z == b]eq_sym (negbTE bz) add0r !sum_entry.
rewrite [X in _ + X]big1 ?addr0 => [|l _]; last first.
  by rewrite -scalemxAl scalecE mxE big1 ?mulr0 // => j _; rewrite Db mul0r.
rewrite ltNge => /negP[].
under eq_bigr do rewrite -scalemxAl scalecE.
exact: convex_le1.
Qed.

(* A term sends at most |row of B| |A^T f|. *)
Lemma term_le1 (B : 'M[R]_(n, s)) (A : 'M[R]_(m, s)) (f : 'cV[R]_m) (z : 'I_n) :
  sqF (row z B) <= 1 -> sqF (A^T *m f) <= 1 -> (B *m A^T *m f) z 0 <= 1.
Proof.
move=> hB hA; rewrite -mulmxA; set u := A^T *m f in hA *.
have -> : (B *m u) z 0 = dotF (row z B)^T u.
  by rewrite dotF_col mxE; apply: eq_bigr => j _; rewrite !mxE.
have two : 0 < 2%:R :> R by rewrite ltr0n.
rewrite -(ler_pmul2l two) mulr1; apply: le_trans (dotF_le _ _) _.
by rewrite sqF_tr mulr2n ler_add.
Qed.

Lemma bessel (F : 'M[R]_(m, s)) (f : 'cV[R]_m) : F^T *m F = 1%:M -> sqF (F^T *m f) <= sqF f.
Proof.
move=> FF; have o : dotF (F *m (F^T *m f)) (f - F *m (F^T *m f)) = 0.
  by rewrite dotF_adj mulmxBr (mulmxA _ F) FF mul1mx subrr dotF0r.
have e : sqF (F *m (F^T *m f)) = sqF (F^T *m f).
  by rewrite {1}/sqF dotF_adj mulmxA FF mul1mx.
by rewrite -{2}(subrK (F *m (F^T *m f)) f) addrC (sqF_pyth o) e ler_addl sqF_ge0.
Qed.

(* Orthonormal prompts: eq. 28 with the balanced factors la T Q, F Q / la of the
   adapters T F^T, each in an orthogonal gauge Q of its own. *)
Theorem eq28_known_fails_orthonormal (W : 'M[R]_(n, m)) (f : 'cV[R]_m) (b z : 'I_n) w
    (T : 'I_k -> 'M[R]_(n, s)) (F : 'I_k -> 'M[R]_(m, s)) (Q : 'I_k -> 'M[R]_s) (la : R) :
  W *m f = oh b -> b != z -> la != 0 ->
  (forall l j, T l b j = 0) -> (forall l, sqF (row z (T l)) <= 1) ->
  (forall l, (F l)^T *m F l = 1%:M) -> (forall l, Q l *m (Q l)^T = 1%:M) -> sqF f <= 1 ->
  (forall l, 0 <= w l) -> \sum_l w l <= 1 ->
  ~~ top1 ((W + eq28 w (fun l => la *: (T l *m Q l)) (fun l => la^-1 *: (F l *m Q l))) *m f) z.
Proof.
move=> Wf bz la0 Tb Tz FF QQ f1 w0 w1; apply: (eq28_known_fails Wf bz) => // [l j|l l'].
  rewrite mxE [X in _ * X]mxE big1 ?mulr0 // => i _; by rewrite Tb mul0r.
rewrite [(_ *: (F l' *m _))^T]linearZ /= -scalemxAl -scalemxAr scalerA divff // scale1r.
apply: term_le1.
  rewrite row_mul /sqF /dotF trmx_mul mulmxA -(mulmxA _ (Q l)) QQ mulmx1.
  exact: Tz.
rewrite trmx_mul -mulmxA /sqF dotF_adj trmxK mulmxA QQ mul1mx.
by apply: le_trans f1; apply: bessel.
Qed.

End Factors.

(* ---- eq. 28 with one fact for each adapter ------------------------------- *)
Section OneFact.
Variables (R : realFieldType) (n m : nat).
Notation oh := (oh R).
Implicit Types (b y z : 'I_n) (w : 'cV[R]_n) (v f : 'cV[R]_m) (W : 'M[R]_(n, m)) (t : R).

(* The adapters of Proposition 1 in the gauges t1, t2 (balanced: t^4 |w|^2 |v|^2 = 1),
   merged by eq. 27 or, with weights that depend on the prompt, by eq. 28. *)
Definition eq28_pair (a1 a2 t1 t2 : R) (w1 w2 : 'cV[R]_n) v1 v2 : 'M[R]_(n, m) :=
  lin a1 a2 (t1 *: w1) ((t1 * sqF v1)^-1 *: v1) (t2 *: w2) ((t2 * sqF v2)^-1 *: v2).

Definition coef1 (a1 a2 t1 t2 : R) v1 v2 f : R := a1 * (a1 * coef v1 f + a2 * (t1 / t2) * coef v2 f).
Definition coef2 (a1 a2 t1 t2 : R) v1 v2 f : R := a2 * (a2 * coef v2 f + a1 * (t2 / t1) * coef v1 f).

(* The output: own terms a_l^2, cross terms a1 a2, the ratio of the gauges. *)
Theorem eq28_output a1 a2 t1 t2 w1 w2 v1 v2 f : t1 != 0 -> t2 != 0 ->
  eq28_pair a1 a2 t1 t2 w1 w2 v1 v2 *m f =
  coef1 a1 a2 t1 t2 v1 v2 f *: w1 + coef2 a1 a2 t1 t2 v1 v2 f *: w2.
Proof.
move=> t10 t20; rewrite /eq28_pair lin_rank1_shift scalerDr !scalerA /coef1 /coef2.
by congr (_ *: _ + _ *: _); field; rewrite t10 t20.
Qed.

(* Known facts: z wins iff its coefficient beats the bridge's and the old answer. *)
Theorem eq28_answer_iff W v1 v2 f b y y0 z a a1 a2 t1 t2 :
  t1 != 0 -> t2 != 0 -> W *m f = oh b ->
  y != y0 -> z != a -> z != b ->
  [&& y != z, y != a & y != b] -> [&& y0 != z, y0 != a & y0 != b] ->
  let c1 := coef1 a1 a2 t1 t2 v1 v2 f in let c2 := coef2 a1 a2 t1 t2 v1 v2 f in
  top1 ((W + eq28_pair a1 a2 t1 t2 (oh y - oh y0) (oh z - oh a) v1 v2) *m f) z =
    (`|c1| < c2) && ((if a == b then 1 - c2 else 1) < c2).
Proof.
move=> t10 t20 Wf h1 h2 h3 h4 h5 c1 c2.
by rewrite mulmxDl Wf eq28_output // addrA -/(out b y y0 z a c1 c2) theorem2_answer_iff.
Qed.

(* Fresh facts: the base is silent. *)
Theorem eq28_fresh_answer_iff v1 v2 f y z a1 a2 t1 t2 :
  t1 != 0 -> t2 != 0 -> y != z -> (2 < n)%N ->
  let c1 := coef1 a1 a2 t1 t2 v1 v2 f in let c2 := coef2 a1 a2 t1 t2 v1 v2 f in
  top1 (eq28_pair a1 a2 t1 t2 (oh y) (oh z) v1 v2 *m f) z = (c1 < c2) && (0 < c2).
Proof. by move=> t10 t20 yz n2 c1 c2; rewrite eq28_output // fresh_fact_answer_iff. Qed.

(* In the aligned gauge it is right for the wrong reason: whenever adapter 2 has the
   larger weight, whatever x is. *)
Corollary eq28_fresh_aligned v1 v2 f y z a1 a2 t :
  t != 0 -> y != z -> (2 < n)%N -> 0 < a1 -> 0 < a2 -> 0 < coef v1 f -> 0 < coef v2 f ->
  top1 (eq28_pair a1 a2 t t (oh y) (oh z) v1 v2 *m f) z = (a1 < a2).
Proof.
move=> t0 yz n2 a10 a20 c10 c20; rewrite eq28_fresh_answer_iff // /coef1 /coef2 divff //.
rewrite !mulr1 [a2 * coef v2 f + _]addrC; set S := a1 * _ + _.
have S0 : 0 < S by rewrite addr_gt0 // mulr_gt0.
by rewrite ltr_pmul2r // (mulr_gt0 a20 S0) andbT.
Qed.

(* Balanced gauges, a two-hop prompt no longer than the stored ones (|xi|^2 = 3/2
   against 2 in the limit): what either term sends is at most 1. *)
Lemma balanced_cross_le1 (w1 w2 : 'cV[R]_n) v1 v2 f t1 t2 :
  v1 != 0 -> v2 != 0 -> w1 != 0 -> sqF w1 = sqF w2 ->
  t1 ^+ 4 * sqF w1 * sqF v1 = 1 -> t2 ^+ 4 * sqF w2 * sqF v2 = 1 ->
  sqF f <= sqF v1 -> sqF f <= sqF v2 -> t2 / t1 * coef v1 f <= 1.
Proof.
move=> v10 v20 w10 ww b1 b2 f1 f2.
have V1 : 0 < sqF v1 by rewrite sqF_gt0.
have V2 : 0 < sqF v2 by rewrite sqF_gt0.
have W1 : 0 < sqF w1 by rewrite sqF_gt0.
have t10 : t1 != 0.
  by apply/eqP => t0; move/eqP: b1; rewrite t0 expr0n /= !mul0r eq_sym oner_eq0.
set x := t2 / t1 * _; apply: le_trans (ler_norm x) _.
rewrite -(@ler_pexpn2r _ 4) ?nnegrE ?normr_ge0 ?ler01 // expr1n.
have x4 : x ^+ 4 = (dotF v1 f ^+ 2) ^+ 2 / (sqF v1 ^+ 3 * sqF v2).
  have e2 : t2 ^+ 4 = (sqF w1 * sqF v2)^-1.
    have n0 : sqF w1 * sqF v2 != 0 by rewrite gt_eqF // mulr_gt0.
    by apply: (mulIf n0); rewrite mulVf // ww mulrA.
  have e1 : (t1 ^+ 4)^-1 = sqF w1 * sqF v1.
    by apply: (mulfI (expf_neq0 4 t10)); rewrite mulfV ?expf_neq0 // mulrA b1.
  rewrite /x /coef !exprMn !exprVn e1 e2.
  by field; rewrite !gt_eqF.
rewrite -normrX ger0_norm; last by rewrite (exprM _ 2 2) sqr_ge0.
rewrite x4 ler_pdivr_mulr ?mul1r; last by rewrite mulr_gt0 // exprn_gt0.
have cs := cauchy_schwarz v1 f.
have d0 : 0 <= dotF v1 f ^+ 2 by apply: sqr_ge0.
apply: (@le_trans _ _ ((sqF v1 * sqF f) ^+ 2)); first by rewrite ler_pexpn2r ?nnegrE // mulr_ge0 ?sqF_ge0.
rewrite (_ : sqF v1 ^+ 3 * _ = sqF v1 ^+ 2 * (sqF v1 * sqF v2)); last by ring.
rewrite exprMn ler_pmul2l ?exprn_gt0 // expr2.
by rewrite ler_pmul ?sqF_ge0.
Qed.

Lemma coef_le1 v f : v != 0 -> sqF f <= sqF v -> coef v f <= 1.
Proof.
move=> v0 fv; have V : 0 < sqF v by rewrite sqF_gt0.
rewrite /coef ler_pdivr_mulr // mul1r.
have two : 0 < 2%:R :> R by rewrite ltr0n.
rewrite -(ler_pmul2l two); apply: le_trans (dotF_le _ _) _.
by rewrite mulr2n mulrDl !mul1r ler_add2l.
Qed.

(* Known facts, balanced gauges of any sign: routing of any kind keeps the old answer. *)
Theorem eq28_one_known_fact_fails W v1 v2 f b y y0 z a a1 a2 t1 t2 :
  W *m f = oh b -> y != y0 -> z != a -> z != b -> a != b ->
  [&& y != z, y != a & y != b] -> [&& y0 != z, y0 != a & y0 != b] ->
  v1 != 0 -> v2 != 0 -> sqF f <= sqF v1 -> sqF f <= sqF v2 ->
  let w1 := oh y - oh y0 in let w2 := oh z - oh a in
  t1 ^+ 4 * sqF w1 * sqF v1 = 1 -> t2 ^+ 4 * sqF w2 * sqF v2 = 1 ->
  0 <= a1 -> 0 <= a2 -> a1 + a2 <= 1 ->
  ~~ top1 ((W + eq28_pair a1 a2 t1 t2 w1 w2 v1 v2) *m f) z.
Proof.
move=> Wf yy0 za zb ab h4 h5 v10 v20 f1 f2 w1 w2 b1 b2 a10 a20 a12.
have nz t (w : 'cV[R]_n) v : t ^+ 4 * sqF w * sqF v = 1 -> t != 0.
  by move=> e; apply/eqP => t0; move/eqP: e; rewrite t0 expr0n /= !mul0r eq_sym oner_eq0.
have sq2 (e e' : 'I_n) : e != e' -> sqF (oh e - oh e') = 2%:R.
  move=> ee'; rewrite -[- oh e']scaleN1r sqFD sqFZ dotFZr.
  have d (i j : 'I_n) : dotF (oh i) (oh j) = (i == j)%:R.
    rewrite dotF_col (bigD1 i) //= !ohE eqxx mul1r big1 ?addr0 // => l /negbTE li.
    by rewrite !ohE li mul0r.
  by rewrite /sqF !d !eqxx (negbTE ee') /=; ring.
have w10 : w1 != 0 by rewrite -sqF_eq0 sq2 // pnatr_eq0.
have ww : sqF w1 = sqF w2 by rewrite !sq2.
rewrite (eq28_answer_iff _ _ _ _ (nz _ _ _ b1) (nz _ _ _ b2) Wf yy0 za zb h4 h5).
rewrite (negbTE ab) negb_and -!leNgt.
apply/orP; right; rewrite /coef2.
have c2 := coef_le1 v20 f2; have c1 := balanced_cross_le1 v10 v20 w10 ww b1 b2 f1 f2.
have a21 : a2 <= 1 by apply: le_trans a12; rewrite ler_addr.
have le : a2 * coef v2 f + a1 * (t2 / t1) * coef v1 f <= a2 + a1.
  by rewrite -mulrA ler_add // -[leRHS]mulr1 ler_wpmul2l.
apply: (@le_trans _ _ (a2 * (a2 + a1))); first by rewrite ler_wpmul2l.
by rewrite mulr_ile1 ?addr_ge0 // addrC.
Qed.

End OneFact.

(* ---- eq. 28 with K fresh facts: the counterexample -------------------------- *)
Section FreshFacts.
Variables (R : realFieldType) (n K : nat) (y z : 'I_K -> 'I_n).
Hypotheses (yI : injective y) (zI : injective z) (zy : forall i j, z i != y j).
Notation R1 := (R1 R K).                  (* the stored prompts x_j R1, orthonormal *)
Notation R2 := (R2 R K).                  (* the stored prompts y_j R2, orthonormal *)
Notation fx := (@fx R K).                 (* x_i R1 R2: sees x_i R1, and all y_j R2 alike *)
Notation words := (words R).

(* The least-norm adapters of the two hops, as eq. 23 has them. *)
Lemma fresh_adapters : edit R1 (words y) = words y *m R1^T /\ edit R2 (words z) = words z *m R2^T.
Proof. by rewrite /edit /gram R1_orth R2_orth invmx1 !mulmx1. Qed.

Lemma words_apply (q : 'I_K -> 'I_n) (h : 'cV[R]_K) e :
  (words q *m h) e 0 = \sum_j (e == q j)%:R * h j 0.
Proof. by rewrite mxE; apply: eq_bigr => j _; rewrite mxE. Qed.

Lemma words_at (q : 'I_K -> 'I_n) (h : 'cV[R]_K) i : injective q ->
  (words q *m h) (q i) 0 = h i 0.
Proof.
move=> qI; rewrite words_apply -[RHS](sum_delta i (fun j => h j 0)).
by apply: eq_bigr => j _; rewrite (inj_eq qI).
Qed.

Lemma words_off (q : 'I_K -> 'I_n) (h : 'cV[R]_K) e : (forall j, e != q j) ->
  (words q *m h) e 0 = 0.
Proof. by move=> ne; rewrite words_apply big1 // => j _; rewrite (negbTE (ne j)) mul0r. Qed.

(* Columns paired right, adapter 2 weighted more: all K two-hop prompts are right. *)
Theorem eq28_composes_fresh_facts (a1 a2 : R) i : 0 < a1 < a2 ->
  top1 (lin a1 a2 (words y) R1 (words z) R2 *m fx i) (z i).
Proof.
move=> /andP[a10 a12]; have a20 : 0 < a2 by apply: lt_trans a12.
pose h : 'cV[R]_K := a1 *: (1 *: delta_mx i 0) + a2 *: const_mx 1.
have hE j : h j 0 = a1 * (j == i)%:R + a2 by rewrite !mxE andbT mul1r mulr1.
have O e : (lin a1 a2 (words y) R1 (words z) R2 *m fx i) e 0 =
    a1 * (words y *m h) e 0 + a2 * (words z *m h) e 0.
  rewrite /lin -mulmxA linearD /= !linearZ /= [(_ + _) *m fx i]mulmxDl.
  rewrite -![_ *: _ *m fx i]scalemxAl R1_fx R2_fx -/h mulmxDl.
  by rewrite -![_ *: _ *m h]scalemxAl addcE !scalecE.
have h0 j : 0 < h j 0 by rewrite hE ltr_paddl // mulr_ge0 ?ler0n // ltW.
have top j : j != i -> h j 0 < h i 0.
  by move=> /negbTE ji; rewrite !hE ji eqxx mulr0 mulr1 add0r ltr_addr.
have le j : h j 0 <= h i 0 by have [->//|/top/ltW] := eqVneq j i.
have Oz j : (lin a1 a2 (words y) R1 (words z) R2 *m fx i) (z j) 0 = a2 * h j 0.
  by rewrite O words_at // words_off // mulr0 add0r.
apply/top1P => e ez; rewrite Oz.
have [j /eqP je|nz] := pickP (fun j => z j == e).
  have ji : j != i by apply: contraNneq ez => <-; rewrite je.
  by rewrite -je Oz ltr_pmul2l // top.
have nz' j : e != z j by rewrite eq_sym nz.
rewrite O [X in _ + _ * X]words_off // mulr0 addr0.
have [j /eqP je|ny] := pickP (fun j => y j == e).
  rewrite -je words_at //; apply: (@le_lt_trans _ _ (a1 * h i 0)).
    by rewrite ler_pmul2l.
  by rewrite ltr_pmul2r.
by rewrite words_off ?mulr0 ?mulr_gt0 // => j; rewrite eq_sym ny.
Qed.

(* The same adapters, adapter 2's columns permuted by s: wrong where s moves. *)
Theorem eq28_fresh_wrong_gauge (s : 'S_K) (a1 a2 : R) i :
  0 <= a1 -> 0 <= a2 -> s i != i ->
  (words z *m perm_mx s) *m (R2 *m perm_mx s)^T = words z *m R2^T /\
  ~~ top1 (lin a1 a2 (words y) R1 (words z *m perm_mx s) (R2 *m perm_mx s) *m fx i) (z i).
Proof.
move=> a10 a20 si; split.
  by rewrite trmx_mul mulmxA -(mulmxA _ (perm_mx s)) perm_mx_orth mulmx1.
have h1 l j : words y (z l) j = 0 by rewrite mxE (negbTE (zy _ _)).
have h2 l j : (words z *m perm_mx s) (z l) j = (if s l == j then 1 else 0).
  rewrite -[X in perm_mx X]invgK -col_permE !mxE (inj_eq zI).
  by rewrite -[in LHS](inj_eq (@perm_inj _ s)) permKV; case: eqP.
have h3 : (R2 *m perm_mx s)^T *m fx i = const_mx 1.
  rewrite trmx_mul -mulmxA R2_fx; apply/colP => j; rewrite tr_perm_mx -row_permE.
  by rewrite !mxE.
have [e _] := lin_ranks_by_first_hop a1 a2 i ((s^-1)%g i) h1 h2 (R1_fx R i) h3.
apply/negP => /top1P /(_ (z ((s^-1)%g i))); rewrite (inj_eq zI).
rewrite -(inj_eq (@perm_inj _ s)) permKV [i == _]eq_sym => /(_ si).
rewrite -subr_gt0 -/(margin _ _ _) e permKV scale1r !mxE eqxx (negbTE si) /=.
by rewrite subr0 mulr1 sub0r mulrN1 oppr_gt0 ltNge mulr_ge0.
Qed.

(* The sum of the same products (CAT, mean, Arrow by products): never right. *)
Theorem products_never_compose_fresh_facts (a1 a2 : R) i : (1 < K)%N ->
  ~~ top1 ((a1 *: (words y *m R1^T) + a2 *: (words z *m R2^T)) *m fx i) (z i).
Proof.
move=> K2; have [j ji] : exists j : 'I_K, j != i.
  have /card_gt1P[u [v [_ _ uv]]] : (1 < #|'I_K|)%N by rewrite card_ord.
  have [ui|ui] := eqVneq u i; last by exists u.
  by exists v; rewrite -ui eq_sym.
apply/negP => /top1P /(_ (z j)); rewrite (inj_eq zI) => /(_ ji).
have O l : ((a1 *: (words y *m R1^T) + a2 *: (words z *m R2^T)) *m fx i) (z l) 0 = a2.
  rewrite mulmxDl -![_ *: _ *m fx i]scalemxAl -!mulmxA R1_fx R2_fx addcE !scalecE.
  by rewrite words_off // words_at // mxE mulr0 add0r mulr1.
by rewrite !O ltxx.
Qed.

End FreshFacts.
