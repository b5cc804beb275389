(* What Arrow sees of an entity that its adapter was not trained on (section 8d).

   An adapter of k facts under one relation: the Gram matrix of their features is a + b on
   the diagonal and b off it, a, b > 0.  Arrow's prototype p is a first right-singular
   vector of the update.  Features f of an unseen entity under the same relation overlap
   alike with all facts, F^T f = kappa 1, so p sees them by its mean over the facts.

   Where facts have common parts by groups (the same answer, or the same kind), p f is
   exactly 0 iff two groups tie for the largest: for answers that all differ always, and
   otherwise iff the commonest answer is not the only one of its number.  The mean of the
   features sees every such f.

   Where one first singular value is large, no prompt has a large logit: so a bridge of
   fresh facts beside known ones drives the logits of tested prompts to 0. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Direction.
Variables (R : realFieldType) (n m : nat).

(* p is a right-singular vector of D of the largest singular value, la its square. *)
Definition first_direction (D : 'M[R]_(n, m)) (p : 'cV[R]_m) (la : R) :=
  [/\ p != 0, 0 < la, D^T *m (D *m p) = la *: p & forall q : 'cV[R]_m, sqF (D *m q) <= la * sqF q].

Lemma dotF_seen (D : 'M[R]_(n, m)) p la f : first_direction D p la ->
  la * dotF p f = dotF (D *m p) (D *m f).
Proof. by case=> _ _ e _; rewrite -dotFZl -e dotF_adj trmxK. Qed.

(* |p f| <= |p| |D f| / sigma_1 *)
Theorem logit_bound (D : 'M[R]_(n, m)) p la f : first_direction D p la ->
  la * dotF p f ^+ 2 <= sqF p * sqF (D *m f).
Proof.
move=> dir; have [_ la0 _ _] := dir.
rewrite -(ler_pmul2l la0) [leLHS]mulrA -expr2 -exprMn (dotF_seen f dir).
apply: le_trans (cauchy_schwarz _ _) _; rewrite -[sqF (D *m p)](dotF_seen p dir).
by rewrite -/(sqF p) mulrA.
Qed.

(* ---- weights ---- *)
Section Weights.
Variables (ex : R -> R) (K : nat) (l : 'I_K -> R).
Hypotheses (exD : forall x y, ex (x + y) = ex x * ex y) (ex1 : forall x, 1 + x <= ex x).

(* Softmax; any ex such as exp: it makes sums products, and lies above its tangent at 0. *)
Definition softmax i := ex (l i) / \sum_j ex (l j).

Lemma ex_gt0 x : 0 < ex x.
Proof.
have e0 : ex 0 != 0 by apply: lt0r_neq0; apply: lt_le_trans (ex1 0); rewrite addr0 ltr01.
have ne : ex x != 0.
  by apply: contraNneq e0 => z; have := exD x (- x); rewrite subrr z mul0r => ->.
rewrite lt_def ne; pose h := x / 2%:R.
have -> : x = h + h by rewrite /h -mulrDl -mulr2n -[x *+ 2]mulr_natr mulfK // pnatr_eq0.
by rewrite exD -expr2 sqr_ge0.
Qed.

Lemma ex_le x y : x <= y -> ex x <= ex y.
Proof.
move=> le; rewrite -[y](subrK x) exD ler_pmull ?ex_gt0 //.
by apply: le_trans (ex1 _); rewrite ler_addl subr_ge0.
Qed.

(* K logits of size at most e are weighted nearly alike. *)
Theorem softmax_near_uniform e i : (1 < K)%N -> (forall j, 0 <= l j <= e) ->
  `|softmax i - K%:R^-1| <= (1 - K%:R^-1) * e.
Proof.
move=> K1 le; have K0 : 0 < K%:R :> R by rewrite ltr0n ltnW.
have e0 : 0 <= e by have /andP[h h'] := le i; apply: le_trans h'.
have S0 : 0 < \sum_j ex (l j).
  by rewrite (bigD1 i) //= ltr_paddr ?ex_gt0 //; apply: sumr_ge0 => j _; apply/ltW/ex_gt0.
have one j : (1 - e) / K%:R <= softmax j.
  rewrite ler_pdivr_mulr // mulrAC ler_pdivl_mulr //.
  apply: le_trans (ler_wpmul2r (ltW S0) (ex1 (- e))) _; rewrite mulr_sumr.
  apply: (@le_trans _ _ (\sum_(j' < K) ex (l j))); last by rewrite sumr_const card_ord mulr_natr.
  apply: ler_sum => j' _; rewrite -exD ex_le // addrC.
  have [/andP[_ h] /andP[h' _]] := (le j', le j).
  by apply: le_trans h'; rewrite subr_le0.
have K2 : K%:R^-1 <= 1 - K%:R^-1 :> R.
  by rewrite ler_subr_addr -mulr2n -[_ *+ 2]mulr_natl ler_pdivr_mulr // mul1r ler_nat.
have all : \sum_j softmax j = 1 by rewrite -mulr_suml divff // gt_eqF.
rewrite ler_norml; apply/andP; split.
  rewrite ler_subr_addr; apply: le_trans (one i).
  by rewrite [leRHS]mulrBl mul1r [leLHS]addrC ler_add2l ler_opp2 mulrC ler_wpmul2r.
have : \sum_(j | j != i) (1 - e) / K%:R <= \sum_(j | j != i) softmax j by apply: ler_sum.
have -> : \sum_(j | j != i) softmax j = 1 - softmax i by rewrite -all [in RHS](bigD1 i) //= addrAC subrr add0r.
rewrite sumr_const cardC1 card_ord -[_ *+ _]mulr_natr => h.
have p : (K.-1)%:R = K%:R - 1 :> R by rewrite -subn1 natrB // ltnW.
rewrite -subr_ge0; move: h; rewrite p -subr_ge0; congr (0 <= _).
have Kne : K%:R != 0 :> R by rewrite gt_eqF.
by field.
Qed.

End Weights.

Variables (k : nat) (F : 'M[R]_(m, k)) (T : 'M[R]_(n, k)).
Hypothesis gu : gram F \in unitmx.
Notation D := (edit F T).
Implicit Types (h : 'cV[R]_k) (p f q : 'cV[R]_m).

Lemma in_span p la : first_direction D p la -> exists c, p = F *m c.
Proof.
case=> _ la0 e _; exists (la^-1 *: (invmx (gram F) *m T^T *m (D *m p))).
rewrite -scalemxAr; apply: (scalerI (lt0r_neq0 la0)); rewrite -e scalerA divff ?gt_eqF // scale1r.
by rewrite {1}/edit !trmx_mul trmxK invgram_sym !mulmxA.
Qed.

Lemma edit_span h : D *m (F *m h) = T *m h.
Proof. by rewrite mulmxA edit_feasible. Qed.

Lemma sqF_span h : sqF (F *m h) = dotF h (gram F *m h).
Proof. by rewrite /sqF dotF_adj mulmxA. Qed.

(* From below: sigma_1^2 is at least |T h|^2 / |F h|^2 for every h. *)
Lemma first_at_least p la h : first_direction D p la -> sqF (T *m h) <= la * dotF h (gram F *m h).
Proof. by case=> _ _ _ most; rewrite -edit_span -sqF_span. Qed.

(* ---- a bridge of fresh facts beside known ones ---- *)
Definition ind (A : pred 'I_k) : 'cV[R]_k := \col_j (A j)%:R.

Lemma form (A B : pred 'I_k) (M : 'M[R]_k) (x y : R) :
  (forall i j, A i -> B j -> M i j = x * (i == j)%:R + y) ->
  dotF (ind A) (M *m ind B) = x * #|predI A B|%:R + y * #|A|%:R * #|B|%:R.
Proof.
move=> ME; have card (P : pred 'I_k) : #|P|%:R = \sum_i (P i)%:R :> R.
  by rewrite -sum1_card natr_sum big_mkcond; apply: eq_bigr => i _; rewrite unfold_in; case: (P i).
have row i : (ind A) i 0 * (M *m ind B) i 0 = x * (predI A B i)%:R + y * (A i)%:R * #|B|%:R.
  rewrite !mxE /=; case Ai : (A i) => /=; last by rewrite mul0r !mulr0 mul0r addr0.
  rewrite mul1r mulr1 (eq_bigr (fun j => x * ((i == j)%:R * (B j)%:R) + y * (B j)%:R)) => [|j _].
    by rewrite big_split /= -!mulr_sumr sum_delta -card.
  by rewrite mxE; case Bj : (B j); [rewrite ME // !mulr1 | rewrite !mulr0 addr0].
rewrite dotF_col (eq_bigr _ (fun i _ => row i)) big_split /= -mulr_sumr -card; congr (_ + _).
by rewrite [#|A|%:R]card mulr_sumr mulr_suml.
Qed.

(* kn: known facts, whose changes add nothing to a kind; fr: fresh ones of one kind, with t
   in common; all under one relation, whatever else the adapter holds. *)
Theorem bridge_makes_it_large p la (kn fr : pred 'I_k) (a b t x : R) : first_direction D p la ->
  (forall i, ~~ (kn i && fr i)) -> 0 <= x -> 0 <= t <= 1 ->
  (0 < #|kn|)%N -> (0 < #|fr|)%N ->
  (forall i j, kn i || fr i -> kn j || fr j -> gram F i j = a * (i == j)%:R + b) ->
  (forall i j, kn i -> kn j -> (T^T *m T) i j = x * (i == j)%:R + 0) ->
  (forall i j, kn i -> fr j -> (T^T *m T) i j = 0 * (i == j)%:R + 0) ->
  (forall i j, fr i -> fr j -> (T^T *m T) i j = (1 - t) * (i == j)%:R + t) ->
  t * (#|kn|%:R * #|fr|%:R) <= la * a * (#|kn|%:R + #|fr|%:R).
Proof.
move=> dir apart x0 /andP[t0 t1] kn0 fr0 GE kk kf ff.
have knI : #|predI kn kn| = #|kn| by apply: eq_card => i; rewrite !inE andbb.
have frI : #|predI fr fr| = #|fr| by apply: eq_card => i; rewrite !inE andbb.
have no : #|predI kn fr| = 0%N by apply: eq_card0 => i; rewrite !inE; apply/negbTE/apart.
have g1 := form (A := kn) (B := kn) (fun i j ki kj => GE i j (introT orP (or_introl ki)) (introT orP (or_introl kj))).
have g2 := form (A := kn) (B := fr) (fun i j ki kj => GE i j (introT orP (or_introl ki)) (introT orP (or_intror kj))).
have g3 := form (A := fr) (B := fr) (fun i j ki kj => GE i j (introT orP (or_intror ki)) (introT orP (or_intror kj))).
have c1 := form kk; have c2 := form kf; have c3 := form ff.
rewrite knI in g1 c1; rewrite no in g2 c2; rewrite frI in g3 c3.
have sym (M : 'M[R]_k) (u v : 'cV[R]_k) : M^T = M -> dotF v (M *m u) = dotF u (M *m v).
  by move=> MT; rewrite dotFC dotF_adj MT.
have N0 : 0 < #|kn|%:R :> R by rewrite ltr0n.
have M0 : 0 < #|fr|%:R :> R by rewrite ltr0n.
have cs : (T^T *m T)^T = T^T *m T by rewrite trmx_mul trmxK.
pose h := #|fr|%:R *: ind kn - #|kn|%:R *: ind fr.
have expand (M : 'M[R]_k) : M^T = M -> dotF h (M *m h) = #|fr|%:R ^+ 2 * dotF (ind kn) (M *m ind kn)
    - 2%:R * #|fr|%:R * #|kn|%:R * dotF (ind kn) (M *m ind fr)
    + #|kn|%:R ^+ 2 * dotF (ind fr) (M *m ind fr).
  move=> MT; rewrite /h -scaleNr mulmxDr -!scalemxAr !(dotFDl, dotFDr, dotFZl, dotFZr).
  by rewrite (sym M (ind kn) (ind fr) MT); ring.
have := first_at_least h dir; rewrite (expand _ (gram_sym F)) g1 g2 g3.
rewrite {1}/sqF dotF_adj mulmxA (expand _ cs) c1 c2 c3.
move: #|kn|%:R #|fr|%:R N0 M0 => N M N0 M0 le.
have NM : 0 < N * M by rewrite mulr_gt0.
rewrite -(ler_pmul2l NM); apply: (@le_trans _ _ (M ^+ 2 * (x * N + 0 * N * N)
  - 2%:R * M * N * (0 * 0 + 0 * N * M) + N ^+ 2 * ((1 - t) * M + t * M * M))).
  have -> : M ^+ 2 * (x * N + 0 * N * N) - 2%:R * M * N * (0 * 0 + 0 * N * M)
      + N ^+ 2 * ((1 - t) * M + t * M * M)
    = N * M * (t * (N * M)) + (x * N * M ^+ 2 + N ^+ 2 * ((1 - t) * M)) by ring.
  have [N0' M0'] := (ltW N0, ltW M0).
  by rewrite ler_addl addr_ge0 // mulr_ge0 ?exprn_ge0 // mulr_ge0 ?subr_ge0.
apply: (le_trans le); rewrite le_eqVlt; apply/orP; left; apply/eqP; ring.
Qed.

(* ---- facts under one relation: the Gram matrix a + b J ---- *)
Definition total (h : 'cV[R]_k) := \sum_j h j 0.

Section OneRelation.
Variables (a b : R).
Hypotheses (a0 : 0 < a) (b0 : 0 < b).
Hypothesis gramE : gram F = a%:M + b *: const_mx 1.

Lemma gram_apply h : gram F *m h = a *: h + (b * total h) *: const_mx 1.
Proof.
rewrite gramE mulmxDl mul_scalar_mx -scalemxAl -scalerA; congr (_ + _ *: _).
by apply/colP => i; rewrite !mxE mulr1; apply: eq_bigr => j _; rewrite mxE mul1r.
Qed.

Lemma dot_ones h : dotF h (const_mx 1) = total h.
Proof. by rewrite dotF_col; apply: eq_bigr => j _; rewrite mxE mulr1. Qed.

Lemma quad h : dotF h (gram F *m h) = a * sqF h + b * total h ^+ 2.
Proof. by rewrite gram_apply dotFDr !dotFZr dot_ones -/(sqF h); ring. Qed.

Lemma logitE h f kappa : F^T *m f = kappa *: const_mx 1 -> dotF (F *m h) f = kappa * total h.
Proof. by move=> fE; rewrite dotF_adj fE dotFZr dot_ones. Qed.

(* If the changes reach their largest stretch on some h of total 0, an unseen entity under
   its own relation gets a logit of exactly 0, for every first right-singular vector. *)
Theorem unseen_gets_zero p la (most : R) h0 : first_direction D p la ->
  (forall h, sqF (T *m h) <= most * sqF h) ->
  h0 != 0 -> total h0 = 0 -> sqF (T *m h0) = most * sqF h0 ->
  dotF p (F *m const_mx 1) = 0 /\
  forall f kappa, F^T *m f = kappa *: const_mx 1 -> dotF p f = 0.
Proof.
move=> dir le h00 t0 reach; have [c pc] := in_span dir.
have [_ la0 _ _] := dir.
have most_le : most <= la * a.
  have := first_at_least h0 dir; rewrite quad t0 expr0n mulr0 addr0 reach mulrA.
  by rewrite ler_pmul2r // sqF_gt0.
have tc : total c = 0.
  have e : sqF (T *m c) = la * dotF c (gram F *m c).
    rewrite -edit_span -pc -[LHS](dotF_seen p dir) -/(sqF p); congr (_ * _).
    by rewrite {1}pc sqF_span.
  have : la * (b * total c ^+ 2) <= 0.
    have := le c; rewrite e quad mulrDr -ler_subr_addl => /le_trans; apply.
    by rewrite mulrA -mulrBl mulr_le0_ge0 ?sqF_ge0 // subr_le0.
  rewrite pmulr_rle0 // pmulr_rle0 // => sq.
  by apply/eqP; rewrite -sqrf_eq0 eq_le sq sqr_ge0.
split=> [|f kappa fE]; last by rewrite pc (logitE _ fE) tc mulr0.
rewrite pc dotF_adj mulmxA gram_apply dotFDr !dotFZr dot_ones tc.
by rewrite mulr0 mulr0 add0r.
Qed.

(* Changes that are orthogonal and of one length, as where new answers all differ and the
   base has none, or old ones that all differ as well: k >= 2 facts see nothing. *)
Corollary distinct_answers_see_nothing p la (len : R) : first_direction D p la ->
  (1 < k)%N -> T^T *m T = len%:M ->
  forall f kappa, F^T *m f = kappa *: const_mx 1 -> dotF p f = 0.
Proof.
move=> dir k1 TT; pose i := Ordinal (ltnW k1); pose j := Ordinal k1.
have ij : i != j by [].
have norm h : sqF (T *m h) = len * sqF h.
  by rewrite {1}/sqF dotF_adj mulmxA TT mul_scalar_mx dotFZr.
pose h0 : 'cV[R]_k := delta_mx i 0 - delta_mx j 0.
have [|||_] := @unseen_gets_zero p la len h0 dir _ _ _ (norm h0) => //.
  by move=> h; rewrite norm.
  apply/eqP => /(congr1 (fun x : 'cV_k => x i 0)); rewrite !mxE !eqxx (negbTE ij) subr0.
  by move/eqP; rewrite oner_eq0.
rewrite /total; under eq_bigr do rewrite !mxE eqxx !andbT.
have one l : \sum_(x < k) (x == l)%:R = 1 :> R.
  by rewrite (bigD1 l) //= eqxx big1 ?addr0 // => x /negbTE ->.
by rewrite sumrB !one subrr.
Qed.

(* The mean of the features has the logit kappa on each. *)
Theorem mean_feature_sees f kappa : (0 < k)%N -> F^T *m f = kappa *: const_mx 1 ->
  dotF (F *m (k%:R^-1 *: const_mx 1)) f = kappa.
Proof.
move=> k0 fE; rewrite (logitE _ fE) /total (eq_bigr (fun=> k%:R^-1)) => [|j _]; last first.
  by rewrite !mxE mulr1.
by rewrite sumr_const card_ord -[_ *+ k]mulr_natl mulfV ?mulr1 // pnatr_eq0 -lt0n.
Qed.

(* ---- groups with a common part ---- *)
Variables (g : nat) (group : 'I_k -> 'I_g) (apart common : R).
Hypotheses (ap0 : 0 <= apart) (co0 : 0 < common).
(* T^T T = apart + common [same group]: fresh facts, groups the answers: 0 and 1; known
   ones with old answers that all differ: 1 and 1; typed answers, groups the kinds:
   1 - t and t. *)
Definition groups : 'M[R]_(g, k) := \matrix_(v, j) (v == group j)%:R.
Hypothesis changesE : T^T *m T = apart%:M + common *: (groups^T *m groups).
Definition size_of (v : 'I_g) : R := #|[set j | group j == v]|%:R.
Implicit Types (v w u : 'I_g).

Lemma stretch h : sqF (T *m h) = apart * sqF h + common * sqF (groups *m h).
Proof.
rewrite {1}/sqF dotF_adj mulmxA changesE mulmxDl mul_scalar_mx -scalemxAl dotFDr !dotFZr.
by congr (_ + _ * _); rewrite -mulmxA -dotF_adj.
Qed.

Lemma groupsE h v : (groups *m h) v 0 = \sum_j (group j == v)%:R * h j 0.
Proof. by rewrite mxE; apply: eq_bigr => j _; rewrite mxE eq_sym. Qed.

Lemma size_sum v : \sum_j (group j == v)%:R = size_of v.
Proof.
rewrite /size_of -sum1_card natr_sum [RHS]big_mkcond; apply: eq_bigr => j _.
by rewrite inE; case: (_ == v).
Qed.

Lemma sum_groups (x : 'I_k -> R) : \sum_v \sum_j (group j == v)%:R * x j = \sum_j x j.
Proof. by rewrite exchange_big; apply: eq_bigr => j _; rewrite sum_delta. Qed.

Lemma stretch_le (N : R) h : (forall v, size_of v <= N) -> sqF (T *m h) <= (apart + common * N) * sqF h.
Proof.
move=> le; rewrite stretch mulrDl ler_add2l -mulrA ler_pmul2l //.
have one v : (groups *m h) v 0 ^+ 2 <= N * \sum_j (group j == v)%:R * h j 0 ^+ 2.
  pose x := \col_j (group j == v)%:R : 'cV[R]_k.
  pose y := \col_j ((group j == v)%:R * h j 0) : 'cV[R]_k.
  have idem (e : bool) : e%:R * e%:R = e%:R :> R by case: e; rewrite ?mulr1 ?mulr0.
  have -> : (groups *m h) v 0 = dotF x y.
    by rewrite groupsE dotF_col; apply: eq_bigr => j _; rewrite !mxE mulrA idem.
  apply: le_trans (cauchy_schwarz _ _) _.
  have -> : sqF x = size_of v.
    by rewrite /sqF dotF_col -size_sum; apply: eq_bigr => j _; rewrite !mxE idem.
  have -> : sqF y = \sum_j (group j == v)%:R * h j 0 ^+ 2.
    by rewrite /sqF dotF_col; apply: eq_bigr => j _; rewrite !mxE mulrACA idem expr2.
  rewrite ler_wpmul2r //; apply: sumr_ge0 => j _; by rewrite mulr_ge0 ?ler0n ?sqr_ge0.
rewrite [leLHS]sqFE (eq_bigr (fun v => (groups *m h) v 0 ^+ 2)) => [|v _]; last by rewrite big_ord1.
apply: le_trans (ler_sum _ (fun v _ => one v)) _.
rewrite -mulr_sumr sum_groups sqFE.
by under [X in _ <= _ * X]eq_bigr do rewrite big_ord1.
Qed.

(* Two groups against one another, with total 0. *)
Definition versus v w : 'cV[R]_k :=
  \col_j (size_of v * (group j == w)%:R - size_of w * (group j == v)%:R).

Lemma total_versus v w : total (versus v w) = 0.
Proof.
rewrite /total; under eq_bigr do rewrite mxE.
by rewrite sumrB -!mulr_sumr !size_sum mulrC subrr.
Qed.

Lemma one_group v w : \sum_j (group j == v)%:R * (group j == w)%:R = (v == w)%:R * size_of w :> R.
Proof.
have [->|vw] := eqVneq v w.
  by rewrite mul1r -size_sum; apply: eq_bigr => j _; case: (_ == w); rewrite ?mulr1 ?mulr0.
rewrite mul0r big1 // => j _; have [->|_] := eqVneq (group j) v; last by rewrite mul0r.
by rewrite (negbTE vw) mulr0.
Qed.

Lemma versus_norms v w : v != w ->
  sqF (versus v w) = size_of v * size_of w * (size_of v + size_of w) /\
  sqF (T *m versus v w) = apart * sqF (versus v w) + common * (2%:R * (size_of v * size_of w) ^+ 2).
Proof.
move=> vw; have wv : w == v = false by rewrite eq_sym (negbTE vw).
have at_group u : (groups *m versus v w) u 0 =
    size_of v * size_of w * (u == w)%:R - size_of v * size_of w * (u == v)%:R.
  rewrite groupsE (eq_bigr (fun j => size_of v * ((group j == u)%:R * (group j == w)%:R)
     - size_of w * ((group j == u)%:R * (group j == v)%:R))) => [|j _]; last first.
    by rewrite mxE; ring.
  by rewrite sumrB -!mulr_sumr !one_group; ring.
split.
  rewrite /sqF dotF_col (eq_bigr (fun j => size_of v ^+ 2 * ((group j == w)%:R * (group j == w)%:R)
     - 2%:R * size_of v * size_of w * ((group j == w)%:R * (group j == v)%:R)
     + size_of w ^+ 2 * ((group j == v)%:R * (group j == v)%:R))) => [|j _]; last first.
    by rewrite !mxE; ring.
  by rewrite big_split sumrB /= -!mulr_sumr !one_group !eqxx wv /=; ring.
rewrite stretch; congr (_ + _ * _); rewrite /sqF dotF_col.
rewrite (bigD1 v) //= (bigD1 w) //= 1?eq_sym // big1 => [|u /andP[uv uw]]; last first.
  by rewrite at_group (negbTE uv) (negbTE uw) !mulr0 subrr mulr0.
by rewrite !at_group !eqxx wv (negbTE vw) /=; ring.
Qed.

Definition largest_tie := exists v w, [/\ v != w, size_of v = size_of w,
  0 < size_of v & forall u, size_of u <= size_of v].

(* Two groups that tie for the largest: nothing is seen. *)
Theorem tied_groups_see_nothing p la : first_direction D p la -> largest_tie ->
  forall f kappa, F^T *m f = kappa *: const_mx 1 -> dotF p f = 0.
Proof.
move=> dir [v [w [vw same pos most]]]; have [n1 n2] := versus_norms vw.
have s0 : 0 < sqF (versus v w) by rewrite n1 -same !mulr_gt0 // addr_gt0.
have reach : sqF (T *m versus v w) = (apart + common * size_of v) * sqF (versus v w).
  by rewrite n2 n1 -same; ring.
have [] := unseen_gets_zero dir (fun h => stretch_le h most) _ (total_versus v w) reach => //.
by rewrite -sqF_gt0.
Qed.

(* The converse: if something that overlaps with the facts is not seen, two groups tie. *)
Theorem unseen_means_tied p la f kappa : first_direction D p la ->
  apart = 0 \/ (exists i j, group i != group j) ->
  F^T *m f = kappa *: const_mx 1 -> kappa != 0 -> dotF p f = 0 -> largest_tie.
Proof.
move=> dir several fE k0 zero; have [c pc] := in_span dir.
have [p0 la0 eig _] := dir.
have tc : total c = 0.
  by move: zero; rewrite pc (logitE _ fE) => /eqP; rewrite mulf_eq0 (negbTE k0) => /eqP.
have cE : T^T *m (T *m c) = (la * a) *: c.
  have : F^T *m (D^T *m (D *m p)) = la *: (F^T *m p) by rewrite eig -scalemxAr.
  rewrite {1}/edit !trmx_mul trmxK invgram_sym // pc edit_span !mulmxA -/(gram F).
  by rewrite mulmxV // mul1mx gram_apply tc mulr0 scale0r addr0 -!mulmxA scalerA.
pose s v := (groups *m c) v 0.
have at_fact j : common * s (group j) = (la * a - apart) * c j 0.
  have := congr1 (fun x : 'cV_k => x j 0) cE.
  rewrite mulmxA changesE mulmxDl mul_scalar_mx -scalemxAl -mulmxA addcE !scalecE => e.
  rewrite mulrBl -e addrAC subrr add0r; congr (_ * _).
  rewrite [RHS]mxE (bigD1 (group j)) //= big1 ?addr0 => [|u uj].
    by rewrite [groups^T _ _]mxE [groups _ _]mxE eqxx mul1r.
  by rewrite [groups^T _ _]mxE [groups _ _]mxE (negbTE uj) mul0r.
have at_group v : common * size_of v * s v = (la * a - apart) * s v.
  rewrite -size_sum mulr_sumr mulr_suml {2}/s groupsE mulr_sumr; apply: eq_bigr => j _.
  have [jv|_] := eqVneq (group j) v; last by rewrite mulr0 mul0r mul0r mulr0.
  by rewrite mulr1 mul1r -at_fact jv.
have most v w : v != w -> 0 < size_of v -> 0 < size_of w ->
    common * (2%:R * (size_of v * size_of w)) <= (la * a - apart) * (size_of v + size_of w).
  move=> vw v0 w0; have [n1 n2] := versus_norms vw.
  have := first_at_least (versus v w) dir.
  rewrite quad total_versus expr0n mulr0 addr0 n2 n1 => le.
  rewrite -subr_ge0 -(pmulr_rge0 _ (mulr_gt0 v0 w0)).
  have -> : size_of v * size_of w * ((la * a - apart) * (size_of v + size_of w)
      - common * (2%:R * (size_of v * size_of w))) =
    la * (a * (size_of v * size_of w * (size_of v + size_of w)))
    - (apart * (size_of v * size_of w * (size_of v + size_of w))
       + common * (2%:R * (size_of v * size_of w) ^+ 2)).
    by move: (size_of v) (size_of w) => x y; ring.
  by rewrite subr_ge0.
have pos j : 0 < size_of (group j).
  by rewrite /size_of ltr0n card_gt0; apply/set0Pn; exists j; rewrite inE.
have mu0 : la * a - apart != 0.
  case: several => [->|[i [j ij]]]; first by rewrite subr0 mulf_neq0 // gt_eqF.
  apply/eqP => z; have := most _ _ ij (pos i) (pos j); rewrite z mul0r leNgt => /negP; apply.
  by rewrite mulr_gt0 // mulr_gt0 ?ltr0n // mulr_gt0.
have [v sv] : exists v, s v != 0.
  apply/existsP; apply/contraT; rewrite negb_exists => /forallP all0.
  have c0 : c = 0.
    apply/colP => j; rewrite mxE; apply/eqP; have := at_fact j.
    have /negPn/eqP -> := all0 (group j); rewrite mulr0 => /esym/eqP.
    by rewrite mulf_eq0 (negbTE mu0).
  by move: p0; rewrite pc c0 mulmx0 eqxx.
have [w /andP[wv sw]] : exists w, (w != v) && (s w != 0).
  apply/existsP; apply/contraT; rewrite negb_exists => /forallP all0.
  have : \sum_u s u = 0.
    rewrite -[RHS]tc /total -(sum_groups (fun j => c j 0)).
    by apply: eq_bigr => u _; rewrite /s groupsE.
  rewrite (bigD1 v) //= big1 ?addr0 => [/eqP|u uv]; first by rewrite (negbTE sv).
  by have := all0 u; rewrite uv /= => /negPn/eqP.
have muE u : s u != 0 -> common * size_of u = la * a - apart.
  by move=> su; apply: (mulIf su); rewrite at_group.
have same : size_of v = size_of w.
  by apply: (mulfI (lt0r_neq0 co0)); rewrite !muE.
have v0 : 0 < size_of v.
  rewrite lt_def ler0n andbT; apply: contraNneq mu0 => z.
  by rewrite -(muE v sv) z mulr0.
exists v, w; split=> //; first by rewrite eq_sym.
move=> u; have [->|uv] := eqVneq u v; first exact: lexx.
have [u0|u0] := leP (size_of u) 0; first by apply: le_trans u0 (ltW v0).
rewrite eq_sym in uv; have := most v u uv v0 u0.
rewrite -(muE v sv) -mulrA ler_pmul2l // mulrCA ler_pmul2l // mulr2n mulrDl mul1r.
by rewrite ler_add2r.
Qed.

End OneRelation.

(* ---- what an adapter says at all ---- *)
Lemma weighted_square (I : finType) (w t : I -> R) : (forall j, 0 <= w j) ->
  (\sum_j w j * t j) ^+ 2 <= (\sum_j w j) * \sum_j w j * t j ^+ 2.
Proof.
move=> w0; rewrite -subr_ge0 -(@pmulr_rge0 _ 2%:R) ?ltr0n //.
set A := \sum_j w j; set B := \sum_j _; set S := \sum_j w j * t j.
have inner j : \sum_l w j * w l * (t j - t l) ^+ 2 =
    w j * t j ^+ 2 * A - w j * t j * (2%:R * S) + w j * B.
  rewrite !mulr_sumr -sumrB -big_split /=; apply: eq_bigr => l _; ring.
have -> : 2%:R * (A * B - S ^+ 2) = \sum_j \sum_l w j * w l * (t j - t l) ^+ 2.
  rewrite (eq_bigr _ (fun j _ => inner j)) big_split sumrB /= -!mulr_suml -/A -/B -/S; ring.
by do 2![apply: sumr_ge0 => ? _]; rewrite mulr_ge0 ?sqr_ge0 // mulr_ge0.
Qed.

Section Output.
Variables (g : nat) (relation : 'I_k -> 'I_g) (a b tau : R) (Q : 'M[R]_g).
Hypotheses (a0 : 0 < a) (b0 : 0 < b) (tau0 : 0 <= tau).
(* Facts of one relation overlap by one number, those of two by another, as in the limit;
   Q has no direction in which it falls below b.  No change is longer than sqrt tau. *)
Hypothesis gramQ : forall i j, gram F i j = a * (i == j)%:R + Q (relation i) (relation j).
Hypothesis Qb : forall v : 'cV[R]_g, b * sqF v <= dotF v (Q *m v).
Hypothesis changes_le : forall j, sqF (col j T) <= tau.
Notation M := (groups relation).

Lemma spread_groups (w : 'cV[R]_g) j : (M^T *m w) j 0 = w (relation j) 0.
Proof.
rewrite mxE (bigD1 (relation j)) //= !mxE eqxx mul1r big1 ?addr0 // => v /negbTE ne.
by rewrite !mxE ne mul0r.
Qed.

Lemma combination_le (c : 'cV[R]_k) : sqF (T *m c) <= tau * (\sum_j `|c j 0|) ^+ 2.
Proof.
have one e : (T *m c) e 0 ^+ 2 <= (\sum_j `|c j 0|) * \sum_j `|c j 0| * T e j ^+ 2.
  have -> : (T *m c) e 0 = \sum_j `|c j 0| * (Num.sg (c j 0) * T e j).
    by rewrite mxE; apply: eq_bigr => j _; rewrite mulrA -[_ * Num.sg _]mulrC -numEsg mulrC.
  apply: le_trans (weighted_square _ _) _ => [j|]; first exact: normr_ge0.
  rewrite ler_wpmul2l ?sumr_ge0 //; apply: ler_sum => j _; rewrite ler_wpmul2l // exprMn sqr_sg.
  by case: (_ != _); rewrite ?mul1r ?mul0r ?sqr_ge0.
rewrite [leLHS]sqFE (eq_bigr (fun e => (T *m c) e 0 ^+ 2)) => [|e _]; last by rewrite big_ord1.
apply: le_trans (ler_sum _ (fun e _ => one e)) _.
rewrite -mulr_sumr exchange_big /= expr2 mulrCA ler_wpmul2l ?sumr_ge0 // mulr_sumr.
apply: ler_sum => j _; rewrite -mulr_sumr [leLHS]mulrC ler_wpmul2r //; apply: le_trans (changes_le j).
by rewrite sqFE le_eqVlt; apply/orP/or_introl/eqP; apply: eq_bigr => e _; rewrite big_ord1 mxE.
Qed.

(* A prompt that overlaps alike with all facts of a relation, as of an entity that is none of
   the facts', is answered by at most sqrt (tau g / b) |f|, however many facts there are. *)
Theorem output_bounded f (u : 'cV[R]_g) : F^T *m f = M^T *m u ->
  b * sqF (D *m f) <= tau * g%:R * sqF f.
Proof.
move=> fE; pose c := invmx (gram F) *m (F^T *m f).
have DE : D *m f = T *m c by rewrite /edit -!mulmxA.
have Gc : gram F *m c = F^T *m f by rewrite mulmxA mulmxV // mul1mx.
have gE : gram F *m c = a *: c + M^T *m (Q *m (M *m c)).
  apply/colP => i; rewrite addcE scalecE spread_groups [LHS]mxE [(Q *m _) _ _]mxE.
  under eq_bigr do rewrite gramQ mulrDl -mulrA.
  rewrite big_split /= -mulr_sumr sum_delta; congr (_ + _).
  rewrite -(sum_groups relation (fun j => Q (relation i) (relation j) * c j 0)).
  apply: eq_bigr => v _; rewrite groupsE mulr_sumr; apply: eq_bigr => j _.
  by case: eqP => [->|_]; rewrite ?mul1r // !mul0r mulr0.
pose v := a^-1 *: (u - Q *m (M *m c)).
have cE j : c j 0 = v (relation j) 0.
  rewrite /v scalecE -[u - _]/(u - _) -(spread_groups _ j) mulmxBr -fE -Gc gE addrK scalecE.
  by rewrite mulKf // gt_eqF.
have fit : b * sqF (M *m c) <= sqF f.
  apply: (@le_trans _ _ (sqF (F *m c))).
    rewrite sqF_span gE dotFDr dotFZr [X in _ + X]dotFC dotF_adj trmxK dotFC.
    by rewrite (le_trans (Qb _)) // ler_addr mulr_ge0 ?sqF_ge0 // ltW.
  have [->|z] := eqVneq (F *m c) 0; first by rewrite {1}/sqF dotF0r sqF_ge0.
  have self : dotF (F *m c) f = sqF (F *m c) by rewrite sqF_span Gc dotF_adj.
  have := cauchy_schwarz (F *m c) f; rewrite self expr2 ler_pmul2l //.
  by rewrite sqF_gt0.
have sums : \sum_j `|c j 0| = \sum_w `|(M *m c) w 0|.
  rewrite -(sum_groups relation (fun j => `|c j 0|)); apply: eq_bigr => w _; rewrite groupsE.
  have e (h : R -> R) : \sum_j (relation j == w)%:R * h (c j 0) =
      (\sum_j (relation j == w)%:R) * h (v w 0).
    rewrite mulr_suml; apply: eq_bigr => j _; rewrite cE.
    by case: eqP => [->|_]; rewrite ?mul1r ?mul0r.
  rewrite (e (fun x => `|x|)) (e id) normrM ger0_norm //.
  by apply: sumr_ge0 => j _; rewrite ler0n.
have squares : (\sum_j `|c j 0|) ^+ 2 <= g%:R * sqF (M *m c).
  have := weighted_square (fun w : 'I_g => `|(M *m c) w 0|) (fun _ : 'I_g => @ler01 R).
  rewrite sumr_const card_ord sums; under eq_bigr do rewrite mul1r.
  under [X in _ <= _ * X]eq_bigr do rewrite mul1r.
  move=> /le_trans; apply.
  rewrite ler_wpmul2l ?ler0n // sqFE le_eqVlt; apply/orP/or_introl/eqP.
  by apply: eq_bigr => w _; rewrite big_ord1 real_normK // num_real.
rewrite DE; apply: le_trans (ler_wpmul2l (ltW b0) (combination_le c)) _.
rewrite mulrCA -mulrA ler_wpmul2l //; apply: le_trans (ler_wpmul2l (ltW b0) squares) _.
by rewrite mulrCA ler_wpmul2l ?ler0n.
Qed.

(* So a bridge of fresh facts beside known ones leaves Arrow nothing to see: with unit
   prototypes every logit, on the adapter's own facts and on entities that it does not
   know, is at most sqrt (a (n + m) most / (t n m)). *)
Theorem bridged_logits_vanish p la (kn fr : pred 'I_k) (t x most : R) f : first_direction D p la ->
  (forall i, ~~ (kn i && fr i)) -> 0 <= x -> 0 <= t <= 1 -> (0 < #|kn|)%N -> (0 < #|fr|)%N ->
  (exists r, forall i, kn i || fr i -> relation i = r) ->
  (forall i j, kn i -> kn j -> (T^T *m T) i j = x * (i == j)%:R + 0) ->
  (forall i j, kn i -> fr j -> (T^T *m T) i j = 0 * (i == j)%:R + 0) ->
  (forall i j, fr i -> fr j -> (T^T *m T) i j = (1 - t) * (i == j)%:R + t) ->
  tau <= most -> tau * g%:R * sqF f <= b * most ->
  (exists i, f = col i F) \/ (exists u : 'cV[R]_g, F^T *m f = M^T *m u) ->
  t * (#|kn|%:R * #|fr|%:R) * dotF p f ^+ 2 <= sqF p * (a * (#|kn|%:R + #|fr|%:R) * most).
Proof.
move=> dir apart x0 t01 kn0 fr0 [r one] kk kf ff tm fm which.
have out : sqF (D *m f) <= most.
  case: which => [[i ->]|[u fE]].
    by rewrite colE mulmxA edit_feasible // -colE; apply: le_trans tm.
  by rewrite -(ler_pmul2l b0); apply: le_trans (output_bounded fE) _.
have large : t * (#|kn|%:R * #|fr|%:R) <= la * a * (#|kn|%:R + #|fr|%:R).
  apply: (bridge_makes_it_large (b := Q r r) dir apart x0 t01 kn0 fr0 _ kk kf ff) => i j oi oj.
  by rewrite gramQ !one.
apply: le_trans (ler_wpmul2r (sqr_ge0 _) large) _.
have s0 : 0 <= a * (#|kn|%:R + #|fr|%:R) :> R by rewrite mulr_ge0 ?addr_ge0 ?ler0n // ltW.
apply: (@le_trans _ _ (a * (#|kn|%:R + #|fr|%:R) * (la * dotF p f ^+ 2))).
  by rewrite le_eqVlt; apply/orP/or_introl/eqP; ring.
apply: le_trans (ler_wpmul2l s0 (logit_bound f dir)) _.
by rewrite mulrCA ler_wpmul2l ?sqF_ge0 // ler_wpmul2l.
Qed.

End Output.
End Direction.
