(* Eq. 25: K facts for each adapter.  Adapter 2 adds the same to all K answers,
   so they tie under CAT; linear merging ranks them, by the gauge. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section MultiFacts.
Variables (R : realFieldType) (n m K : nat).

Notation oh := (oh R).

(* eq. (25), exactly: if the Gram matrix of the stored prompts has constant
   row sums and the test prompt overlaps equally with all of them, the
   adapter of eq. (23) outputs the same multiple of every target shift. *)
Theorem eq25 (F : 'M[R]_(m, K)) (T : 'M[R]_(n, K)) (f : 'cV[R]_m) (sg k : R) :
  gram F \in unitmx -> sg != 0 ->
  gram F *m const_mx 1 = sg *: const_mx 1 :> 'cV[R]_K ->
  F^T *m f = k *: const_mx 1 ->
  edit F T *m f = (k / sg) *: (T *m const_mx 1).
Proof.
move=> gu s0 g1 fk; rewrite /edit -mulmxA fk -!scalemxAr -mulmxA.
have -> : invmx (gram F) *m const_mx 1 = sg^-1 *: const_mx 1 :> 'cV[R]_K.
  apply: (scalerI s0); rewrite scalerA divff // scale1r.
  by rewrite scalemxAr -g1 mulmxA mulVmx // mul1mx.
by rewrite -scalemxAr scalerA.
Qed.

(* General tie: any base model and any targets that treat the K new answers
   alike at the answer coordinates (covers novel facts). *)
Theorem eq25_tie (W D1 : 'M[R]_(n, m)) (F : 'M[R]_(m, K)) (T : 'M[R]_(n, K))
    (f : 'cV[R]_m) (z : 'I_K -> 'I_n) (sg k a1 a2 : R) (i j : 'I_K) :
  z i != z j ->
  (W *m f) (z i) 0 = (W *m f) (z j) 0 -> (D1 *m f) (z i) 0 = (D1 *m f) (z j) 0 ->
  (T *m const_mx 1 : 'cV[R]_n) (z i) 0 = (T *m const_mx 1 : 'cV[R]_n) (z j) 0 ->
  gram F \in unitmx -> sg != 0 ->
  gram F *m const_mx 1 = sg *: const_mx 1 :> 'cV[R]_K ->
  F^T *m f = k *: const_mx 1 ->
  ~~ top1 ((W + (a1 *: D1 + a2 *: edit F T)) *m f) (z i).
Proof.
move=> zij hW hD hT gu s0 g1 fk; apply/negP => /top1P /(_ (z j)).
rewrite eq_sym zij => /(_ isT).
rewrite mulmxDl mulmxDl -[(a1 *: _) *m _]scalemxAl -[(a2 *: _) *m _]scalemxAl.
rewrite (eq25 _ gu s0 g1 fk); set S := T *m _ in hT *.
have A2 p (x y : 'cV[R]_p) l : (x + y) l 0 = x l 0 + y l 0 by rewrite mxE.
have Z2 p c (x : 'cV[R]_p) l : (c *: x) l 0 = c * x l 0 by rewrite mxE.
by rewrite !A2 !Z2 hW hD hT ltxx.
Qed.

Definition targets (z a : 'I_K -> 'I_n) : 'M[R]_(n, K) :=
  \matrix_(e, j) ((e == z j)%:R - (e == a j)%:R).

Lemma addcE p (x y : 'cV[R]_p) i : (x + y) i 0 = x i 0 + y i 0.
Proof. by rewrite mxE. Qed.

Lemma scalecE p c (x : 'cV[R]_p) i : (c *: x) i 0 = c * x i 0.
Proof. by rewrite mxE. Qed.

Lemma targetsE z a i j : injective z -> (forall i j, z i != a j) ->
  targets z a (z i) j = (i == j)%:R.
Proof. by move=> zI za; rewrite mxE (inj_eq zI) (negbTE (za _ _)) subr0. Qed.

Lemma sum_delta (i : 'I_K) (g : 'I_K -> R) : \sum_j (i == j)%:R * g j = g i.
Proof.
rewrite (bigD1 i) //= eqxx mul1r big1 ?addr0 // => j ji.
by rewrite eq_sym (negbTE ji) mul0r.
Qed.

(* Strict-argmax accuracy is zero under (25): all K new answers are tied, for
   every pair of weights and whatever adapter 1 does outside the answers. *)
Theorem eq25_never_top1 (W D1 : 'M[R]_(n, m)) (F : 'M[R]_(m, K))
    (f : 'cV[R]_m) (z a : 'I_K -> 'I_n) (b : 'I_n) (sg k a1 a2 : R) (i : 'I_K) :
  (1 < K)%N -> injective z -> (forall i j, z i != a j) -> (forall j, b != z j) ->
  W *m f = oh b -> (forall j, (D1 *m f) (z j) 0 = 0) ->
  gram F \in unitmx -> sg != 0 ->
  gram F *m const_mx 1 = sg *: const_mx 1 :> 'cV[R]_K ->
  F^T *m f = k *: const_mx 1 ->
  ~~ top1 ((W + (a1 *: D1 + a2 *: edit F (targets z a))) *m f) (z i).
Proof.
move=> K2 zI za bz Wf D1z gu s0 g1 fk.
have o j : ((W + (a1 *: D1 + a2 *: edit F (targets z a))) *m f) (z j) 0
           = a2 * (k / sg).
  rewrite mulmxDl mulmxDl -[(a1 *: _) *m _]scalemxAl -[(a2 *: _) *m _]scalemxAl.
  rewrite (eq25 _ gu s0 g1 fk) Wf !addcE !scalecE ohE eq_sym (negbTE (bz j)).
  rewrite D1z mulr0 !add0r mxE (eq_bigr (fun l => (j == l)%:R * 1)) => [|l _].
    by rewrite sum_delta mulr1.
  by rewrite targetsE // [const_mx _ _ _]mxE.
have [j ji] : exists j : 'I_K, j != i.
  have /card_gt1P[x [y [_ _ xy]]] : (1 < #|'I_K|)%N by rewrite card_ord.
  have [xi|xi] := eqVneq x i; last by exists x.
  by exists y; rewrite -xi eq_sym.
apply/negP => /top1P /(_ (z j)); rewrite (inj_eq zI) => /(_ ji).
by rewrite !o ltxx.
Qed.

(* The same prompts under LINEAR merging.  s is a permutation of the inner
   (rank) index of adapter 2: a gauge choice that leaves B2 A2^T, its cost and
   hence the adapter itself unchanged.  The cross term B2 A1^T forwards the
   first-hop overlaps u = A1^T f to the second adapter's answers: for s = 1 the
   new answers are ranked by the first hop (composition), for other s they are
   ranked by the wrong first hop; CAT always ties them. *)
Theorem lin_ranks_by_first_hop (B1 B2 : 'M[R]_(n, K)) (A1 A2 : 'M[R]_(m, K))
    (f : 'cV[R]_m) (z : 'I_K -> 'I_n) (u : 'cV[R]_K) (s : 'I_K -> 'I_K)
    (g x y a1 a2 : R) i j :
  (forall i j, B1 (z i) j = 0) ->
  (forall i j, B2 (z i) j = (if s i == j then x else y)) ->
  A1^T *m f = u -> A2^T *m f = const_mx g ->
  margin (lin a1 a2 B1 A1 B2 A2 *m f) (z i) (z j) =
    a1 * a2 * (x - y) * (u (s i) 0 - u (s j) 0) /\
  margin (cat a1 a2 B1 A1 B2 A2 *m f) (z i) (z j) = 0.
Proof.
move=> hB1 hB2 hu hg.
have E (h : 'cV[R]_K) (l : 'I_K) :
    (B2 *m h) (z l) 0 = (x - y) * h (s l) 0 + y * \sum_r h r 0.
  rewrite mxE (eq_bigr (fun r => (s l == r)%:R * ((x - y) * h r 0) + y * h r 0)).
    by rewrite big_split /= sum_delta -mulr_sumr.
  by move=> r _; rewrite hB2; case: eqP => _; rewrite /=; ring.
have Z (h : 'cV[R]_K) (l : 'I_K) : (B1 *m h) (z l) 0 = 0.
  by rewrite mxE big1 // => r _; rewrite hB1 mul0r.
split; rewrite /margin.
  have O l : (lin a1 a2 B1 A1 B2 A2 *m f) (z l) 0 =
     a2 * ((x - y) * (a1 * u (s l) 0 + a2 * g) + y * \sum_r (a1 * u r 0 + a2 * g)).
    rewrite /lin -mulmxA linearD /= !linearZ /= [(_ + _) *m f]mulmxDl.
    rewrite -![_ *: _ *m f]scalemxAl hu hg mulmxDl -![_ *: _ *m (_ + _)]scalemxAl.
    rewrite addcE !scalecE Z mulr0 add0r E.
    congr (_ * (_ * _ + _ * _)); first by rewrite !mxE.
    by apply: eq_bigr => r _; rewrite !mxE.
  by rewrite !O; ring.
have O l : (cat a1 a2 B1 A1 B2 A2 *m f) (z l) 0 =
    a2 * ((x - y) * g + y * \sum_(r < K) g).
  rewrite /cat mulmxDl -![_ *: _ *m f]scalemxAl -!mulmxA hg.
  rewrite addcE !scalecE Z mulr0 add0r E mxE.
  by congr (_ * (_ + _ * _)); apply: eq_bigr => r _; rewrite mxE.
by rewrite !O subrr.
Qed.

End MultiFacts.
