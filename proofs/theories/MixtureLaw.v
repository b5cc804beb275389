(* The mixture law (section 9): Theorem 2 without its constants.

   A model that is linear in its updates answers a merge that adds products by the same
   mixture of what its adapters say alone, whatever the weights and whether or not they
   depend on the prompt; and no other model does so for all updates and weights.

   Two layers are not linear: an update in each meets the other in a cross term.  What the
   law leaves out is the sum of these, bounded by products of norms; with one more pass
   for each pair of adapters only the terms w (w - 1) of an adapter with itself are left. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 Answers ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Law.
Variables (R : ringType) (prompt : Type) (update output : lmodType R).
Variable f : prompt -> update -> output.

Definition linear_in_updates := forall p a (D E : update),
  f p (a *: D + E) - f p 0 = a *: (f p D - f p 0) + (f p E - f p 0).

Definition mixture K (D : 'I_K -> update) (w : 'I_K -> R) p :=
  f p 0 + \sum_i w i *: (f p (D i) - f p 0).

(* Exact, for any number of adapters and weights that depend on the prompt in any way. *)
Theorem mixture_law K (D : 'I_K -> update) (w : 'I_K -> prompt -> R) p :
  linear_in_updates -> f p (\sum_i w i p *: D i) = mixture D (w^~ p) p.
Proof.
move=> lin; rewrite /mixture; apply/eqP; rewrite addrC -subr_eq; apply/eqP.
elim/big_rec2: _ => [|i y1 y2 _ <-]; first by rewrite subrr.
by rewrite lin.
Qed.

(* The converse: where the law holds for every two updates, the model is linear in them. *)
Theorem mixture_law_needs_linearity :
  (forall (D : 'I_2 -> update) (w : 'I_2 -> R) p, f p (\sum_i w i *: D i) = mixture D w p) ->
  linear_in_updates.
Proof.
move=> law p a D E.
have := law (fun i => if i == 0 then D else E) (fun i => if i == 0 then a else 1) p.
rewrite /mixture !big_ord_recl !big_ord0 /= !scale1r !addr0 => ->.
by rewrite addrC addKr.
Qed.

End Law.

(* The toy model, at every width, under any base W, readout G and routing w. *)
Theorem toy_mixture_law (R : realFieldType) (n m q K : nat) (G : 'M[R]_(q, n)) (W : 'M[R]_(n, m))
    (D : 'I_K -> 'M[R]_(n, m)) (w : 'I_K -> 'cV[R]_m -> R) (f : 'cV[R]_m) :
  G *m ((W + \sum_i w i f *: D i) *m f) =
  G *m (W *m f) + \sum_i w i f *: (G *m ((W + D i) *m f) - G *m (W *m f)).
Proof.
rewrite (@mixture_law R _ _ _ (fun (f : 'cV_m) U => G *m ((W + U) *m f)) K D w f) /mixture.
  by rewrite addr0.
by move=> p a U U'; rewrite !addr0 !mulmxDl !mulmxDr -scalemxAl -scalemxAr ![_ + _ - _]addrC !addKr.
Qed.

(* ---- two layers ------------------------------------------------------------- *)
Section TwoLayers.
Variables (R : rcfType) (n h h' m K : nat).
Variables (W1 : 'M[R]_(h, m)) (S : 'M[R]_(h', h)) (W2 : 'M[R]_(n, h')) (x : 'cV[R]_m).

(* Update D in the first layer, E in the second; S: what lies between them, fixed. *)
Definition two_layers (D : 'M[R]_(h, m)) (E : 'M[R]_(n, h')) : 'cV[R]_n :=
  (W2 + E) *m S *m (W1 + D) *m x.

Variables (D : 'I_K -> 'M[R]_(h, m)) (E : 'I_K -> 'M[R]_(n, h')).
Implicit Types (a b w : 'I_K -> R) (i j : 'I_K).

(* What adapter j's second layer makes of what adapter i's first layer adds. *)
Definition cross i j : 'cV[R]_n := E j *m S *m D i *m x.

Lemma two_layersE U V : two_layers U V =
  W2 *m S *m W1 *m x + W2 *m S *m U *m x + V *m S *m W1 *m x + V *m S *m U *m x.
Proof. by rewrite /two_layers !(mulmxDl, mulmxDr) !addrA [_ + _ + V *m S *m W1 *m x]addrAC. Qed.

Lemma merged_cross a b :
  (\sum_j b j *: E j) *m S *m (\sum_i a i *: D i) *m x = \sum_i \sum_j (a i * b j) *: cross i j.
Proof.
rewrite mulmx_sumr mulmx_suml; apply: eq_bigr => i _.
rewrite -scalemxAr -scalemxAl !mulmx_suml scaler_sumr; apply: eq_bigr => j _.
by rewrite -!scalemxAl scalerA.
Qed.

Lemma merged_first a : W2 *m S *m (\sum_i a i *: D i) *m x = \sum_i a i *: (W2 *m S *m D i *m x).
Proof. by rewrite mulmx_sumr mulmx_suml; apply: eq_bigr => i _; rewrite -scalemxAr -scalemxAl. Qed.

Lemma merged_second b : (\sum_j b j *: E j) *m S *m W1 *m x = \sum_j b j *: (E j *m S *m W1 *m x).
Proof. by rewrite !mulmx_suml; apply: eq_bigr => j _; rewrite -!scalemxAl. Qed.

(* Layer by layer: the law misses the cross terms, and nothing else. *)
Theorem remainder_by_layer a b :
  two_layers (\sum_i a i *: D i) (\sum_j b j *: E j) =
  two_layers 0 0 + \sum_i a i *: (two_layers (D i) 0 - two_layers 0 0)
                 + \sum_j b j *: (two_layers 0 (E j) - two_layers 0 0)
                 + \sum_i \sum_j (a i * b j) *: cross i j.
Proof.
rewrite !two_layersE merged_cross merged_first merged_second !(mulmx0, mul0mx, addr0).
congr (_ + _ + _ + _); apply: eq_bigr => i _; rewrite !two_layersE !(mulmx0, mul0mx, addr0).
  by rewrite addrC addKr.
by rewrite addrC addKr.
Qed.

Notation alone i := (two_layers (D i) (E i)).
Notation merged w := (two_layers (\sum_i w i *: D i) (\sum_j w j *: E j)).

(* w_i^2 - w_i of each adapter's own cross term, and w_i w_j of all the others. *)
Definition remainder w : 'cV[R]_n := \sum_i (w i ^+ 2 - w i) *: cross i i
  + \sum_i \sum_(j | j != i) (w i * w j) *: cross i j.

(* Adapters in both layers: what they say alone, mixed, and this remainder. *)
Theorem remainder_of_mixture w :
  merged w = two_layers 0 0 + \sum_i w i *: (alone i - two_layers 0 0) + remainder w.
Proof.
rewrite remainder_by_layer /remainder -!addrA; congr (_ + _); rewrite !addrA.
have -> : \sum_i w i *: (alone i - two_layers 0 0) =
    \sum_i w i *: (two_layers (D i) 0 - two_layers 0 0)
    + \sum_i w i *: (two_layers 0 (E i) - two_layers 0 0) + \sum_i w i *: cross i i.
  rewrite -!big_split /=; apply: eq_bigr => i _; rewrite -!scalerDr; congr (_ *: _).
  rewrite !two_layersE !(mulmx0, mul0mx, addr0) -/(cross i i).
  by apply/matrixP => k l; rewrite !mxE; ring.
rewrite -!addrA; do 2 congr (_ + _); rewrite addrA -big_split /= -big_split /=.
apply: eq_bigr => i _; rewrite (bigD1 i) //= -scalerDl; congr (_ *: _ + _).
by rewrite addrC subrK expr2.
Qed.

(* One more pass for each pair gives the two cross terms between its adapters ... *)
Theorem pair_difference i j :
  two_layers (D i + D j) (E i + E j) - alone i - alone j + two_layers 0 0
  = cross i j + cross j i.
Proof.
rewrite !two_layersE /cross !(mulmxDl, mulmxDr, mulmx0, mul0mx, addr0).
by apply/matrixP => k l; rewrite !mxE; ring.
Qed.

(* ... so with all pairs only each adapter's own w (w - 1) is left. *)
Theorem second_order_law w :
  merged w = two_layers 0 0 + \sum_i w i *: (alone i - two_layers 0 0)
   + \sum_(i < K) \sum_(j < K | (i < j)%N) (w i * w j) *:
       (two_layers (D i + D j) (E i + E j) - alone i - alone j + two_layers 0 0)
   + \sum_i (w i * (w i - 1)) *: cross i i.
Proof.
rewrite remainder_of_mixture /remainder -!addrA; do 2 congr (_ + _); rewrite addrC.
congr (_ + _); last by apply: eq_bigr => i _; rewrite mulrBr mulr1 expr2.
transitivity (\sum_(i < K) \sum_(j < K | (i < j)%N) (w i * w j) *: cross i j
              + \sum_(i < K) \sum_(j < K | (i < j)%N) (w i * w j) *: cross j i); last first.
  rewrite -big_split /=; apply: eq_bigr => i _; rewrite -big_split /=.
  by apply: eq_bigr => j _; rewrite pair_difference scalerDr.
rewrite [X in _ + X](exchange_big_dep xpredT) //= -big_split /=; apply: eq_bigr => i _.
rewrite (bigID (fun j : 'I_K => (i < j)%N)) /=; congr (_ + _); apply: eq_big => j //.
- by rewrite -val_eqE /=; case: ltngtP.
- by rewrite -val_eqE /=; case: ltngtP.
by move=> _; rewrite mulrC.
Qed.

(* ---- how large it is ---- *)
Lemma normF_mul p q (A : 'M[R]_(p, q)) (v : 'cV[R]_q) : normF (A *m v) <= normF A * normF v.
Proof.
rewrite -sqrtrM ?sqF_ge0 //; apply: ler_wsqrtr.
rewrite [X in _ <= X * _]sqFE mulr_suml [leLHS]sqFE; apply: ler_sum => i _.
rewrite big_ord1.
have -> : \sum_j A i j ^+ 2 = sqF (row i A).
  by rewrite sqFE big_ord1; apply: eq_bigr => j _; rewrite mxE.
have -> : (A *m v) i 0 = dotF (row i A)^T v.
  by rewrite dotFE mxE; apply: eq_bigr => j _; rewrite big_ord1 !mxE.
by rewrite -(sqF_tr (row i A)); apply: cauchy_schwarz.
Qed.

Lemma normF_scale p q c (A : 'M[R]_(p, q)) : normF (c *: A) = `|c| * normF A.
Proof. by rewrite /normF sqFZ sqrtrM ?sqr_ge0 // sqrtr_sqr. Qed.

Lemma normFD p q (A B : 'M[R]_(p, q)) : normF (A + B) <= normF A + normF B.
Proof.
rewrite -(@ler_pexpn2r _ 2) ?nnegrE ?addr_ge0 ?normF_ge0 // normF_sq sqFD sqrrD !normF_sq.
rewrite ler_add2r ler_add2l -[_ * _ *+ 2]mulr_natl ler_pmul2l ?ltr0n //.
apply: le_trans (ler_norm _) _; rewrite -sqrtr_sqr -sqrtrM ?sqF_ge0 //.
by apply: ler_wsqrtr; apply: cauchy_schwarz.
Qed.

Lemma normF_sum p q (I : finType) (P : pred I) (A : I -> 'M[R]_(p, q)) :
  normF (\sum_(i | P i) A i) <= \sum_(i | P i) normF (A i).
Proof.
elim/big_rec2: _ => [|i a A' _ le]; last by apply: le_trans (normFD _ _) _; rewrite ler_add2l.
by rewrite /normF (_ : sqF 0 = 0) ?sqrtr0 //; apply/eqP; rewrite sqF_eq0.
Qed.

Variable s : R.
Hypotheses (s0 : 0 <= s) (Sle : forall v : 'cV[R]_h, normF (S *m v) <= s * normF v).

Lemma cross_le i j : normF (cross i j) <= s * normF x * (normF (E j) * normF (D i)).
Proof.
rewrite /cross -!mulmxA; apply: le_trans (normF_mul _ _) _.
rewrite [leRHS]mulrCA ler_wpmul2l ?normF_ge0 //; apply: le_trans (Sle _) _.
by rewrite -mulrA ler_wpmul2l // mulrC normF_mul.
Qed.

(* The remainder is bounded by products of the norms of the two layers' updates. *)
Theorem remainder_bound w :
  normF (remainder w) <= s * normF x *
    (\sum_i `|w i ^+ 2 - w i| * (normF (E i) * normF (D i))
     + \sum_i \sum_(j | j != i) `|w i * w j| * (normF (E j) * normF (D i))).
Proof.
have term c i j : normF (c *: cross i j) <= s * normF x * (`|c| * (normF (E j) * normF (D i))).
  by rewrite normF_scale mulrCA ler_wpmul2l // cross_le.
rewrite mulrDr !mulr_sumr; apply: le_trans (normFD _ _) _; apply: ler_add.
  by apply: le_trans (normF_sum _ _) _; apply: ler_sum => i _; apply: term.
apply: le_trans (normF_sum _ _) _; apply: ler_sum => i _.
apply: le_trans (normF_sum _ _) _; rewrite mulr_sumr; apply: ler_sum => j _; exact: term.
Qed.

End TwoLayers.

(* ---- ReLU between the layers ------------------------------------------------- *)
Section Relu.
Variables (R : rcfType) (n h m K : nat).
Variables (W1 : 'M[R]_(h, m)) (W2 : 'M[R]_(n, h)) (x : 'cV[R]_m) (active : 'I_h -> bool).

Definition relu (u : 'cV[R]_h) : 'cV[R]_h := map_mx (Num.max 0) u.
Definition mask : 'M[R]_h := diag_mx (\row_i (active i)%:R).
Definition relu_layers (D : 'M[R]_(h, m)) (E : 'M[R]_(n, h)) : 'cV[R]_n :=
  (W2 + E) *m relu ((W1 + D) *m x).

Lemma maskE (u : 'cV[R]_h) i : (mask *m u) i 0 = (active i)%:R * u i 0.
Proof. by rewrite mul_diag_mx !mxE. Qed.

Lemma relu_is_mask (u : 'cV[R]_h) : (forall i, active i = (0 < u i 0)) -> relu u = mask *m u.
Proof.
move=> on; apply/colP => i; rewrite maskE on mxE; case: ltP => _.
  by rewrite mul1r.
by rewrite mul0r.
Qed.

Lemma mask_contracts (u : 'cV[R]_h) : normF (mask *m u) <= 1 * normF u.
Proof.
rewrite mul1r; apply: ler_wsqrtr; rewrite !sqFE; apply: ler_sum => i _.
rewrite !big_ord1 maskE; case: (active i); first by rewrite mul1r.
by rewrite mul0r expr0n sqr_ge0.
Qed.

(* Where the same neurons are active at the base, under each adapter and under the merge,
   the network is two layers with a fixed matrix between them: all of the above holds. *)
Theorem relu_mixture (D : 'I_K -> 'M[R]_(h, m)) (E : 'I_K -> 'M[R]_(n, h)) (w : 'I_K -> R) :
  (forall r, active r = (0 < (W1 *m x) r 0)) ->
  (forall i r, active r = (0 < ((W1 + D i) *m x) r 0)) ->
  (forall r, active r = (0 < ((W1 + \sum_i w i *: D i) *m x) r 0)) ->
  relu_layers (\sum_i w i *: D i) (\sum_i w i *: E i) =
  relu_layers 0 0 + \sum_i w i *: (relu_layers (D i) (E i) - relu_layers 0 0)
  + remainder mask x D E w.
Proof.
move=> base alone merge.
have e D' E' : (forall r, active r = (0 < ((W1 + D') *m x) r 0)) ->
    relu_layers D' E' = two_layers W1 mask W2 x D' E'.
  by move=> on; rewrite /relu_layers relu_is_mask // mulmxA /two_layers mulmxA.
rewrite !e ?addr0 //.
rewrite (remainder_of_mixture W1 mask W2 x); congr (_ + _ + _).
by apply: eq_bigr => i _; rewrite e.
Qed.

End Relu.
