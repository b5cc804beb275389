(* No composition by relabelling (section 5; stronger than Theorems 2 and 3).

   Adapter 1 stores x_i -> y_(s i) and adapter 2 stores y_i -> z_i, for a
   permutation s of K facts.  The right answer to x_i R1 R2 is z_(s i).  If the
   outputs on z_1 ... z_K do not depend on s, the accuracy averaged over all K!
   permutations is at most 1/K, which is chance.  Nothing is assumed about the
   features, the width, the attention or the rule: an output is any vector. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Bound.
Variables (R : realFieldType) (n K : nat) (z : 'I_K -> 'I_n).
Hypothesis zI : injective z.

(* o s i: the output on x_i R1 R2 of the model merged for the permutation s *)
Implicit Types (o : 'S_K -> 'I_K -> 'cV[R]_n) (s t : 'S_K) (i j : 'I_K).

Definition label_blind o := forall s t i j, o s i (z j) 0 = o t i (z j) 0.

(* What a guess among the tied best answers gets: 1 / their number. *)
Definition best (u : 'cV[R]_n) : {set 'I_n} := [set e | [forall e', u e' 0 <= u e 0]].
Definition share (u : 'cV[R]_n) (e : 'I_n) : R := (e \in best u)%:R / #|best u|%:R.

Definition accuracy o s : R := (\sum_i share (o s i) (z (s i))) / K%:R.
Definition mean_accuracy o : R := (\sum_s accuracy o s) / (K`!)%:R.

Lemma share_ge0 (u : 'cV[R]_n) e : 0 <= share u e.
Proof. by rewrite divr_ge0 ?ler0n. Qed.

Lemma bestP (u : 'cV[R]_n) e : reflect (forall e', u e' 0 <= u e 0) (e \in best u).
Proof. by rewrite inE; apply: forallP. Qed.

Lemma best_top1 (u : 'cV[R]_n) e : top1 u e -> best u = [set e].
Proof.
move=> /top1P top; apply/setP => e'; rewrite !inE; apply/forallP/eqP => [|-> e''].
  by move=> /(_ e) le; apply/eqP/contraT => /top; rewrite ltNge le.
by have [->|/top/ltW] := eqVneq e'' e.
Qed.

Lemma share_top1 (u : 'cV[R]_n) e : top1 u e -> share u e = 1.
Proof. by move=> /best_top1 b; rewrite /share b set11 cards1 divr1. Qed.

(* How often a permutation sends i to j: equally often for each j. *)
Definition hits i j : nat := #|[set s : 'S_K | s i == j]|.

Lemma hits_const i j j' : hits i j = hits i j'.
Proof.
rewrite /hits -(card_imset _ (mulIg (tperm j j'))); congr #|pred_of_set _|.
apply/setP => s; rewrite inE; apply/imsetP/eqP => [[t]|si].
  by rewrite inE => /eqP ti ->; rewrite permM ti tpermL.
exists (s * tperm j j')%g; last by rewrite -mulgA tperm2 mulg1.
by rewrite inE permM si tpermR.
Qed.

Lemma hits_sum i j : (K * hits i j)%N = K`!.
Proof.
rewrite -card_Sn -sum1_card (partition_big (fun s : 'S_K => s i) xpredT) //=.
rewrite (eq_bigr (fun=> hits i j)) => [|j' _]; last first.
  rewrite (hits_const i j j') /hits -sum1_card; apply: eq_bigl => s.
  by rewrite inE.
by rewrite sum_nat_const card_ord.
Qed.

(* The best z for prompt i; read off at s = 1. *)
Definition favourites o i : {set 'I_K} :=
  [set j | [forall j', o 1%g i (z j') 0 <= o 1%g i (z j) 0]].

Lemma share_le_favourites o s i : label_blind o ->
  share (o s i) (z (s i)) <= (s i \in favourites o i)%:R / #|favourites o i|%:R.
Proof.
move=> blind; rewrite {1}/share.
have [inb|_] := boolP (_ \in best _); last by rewrite mul0r divr_ge0 ?ler0n.
have fav : s i \in favourites o i.
  rewrite inE; apply/forallP => j'; rewrite -2!(blind s).
  by move/bestP: inb; apply.
rewrite fav ler_pmul2l ?ltr01 // ler_pinv ?inE ?unitfE ?pnatr_eq0 ?ltr0n.
- rewrite ler_nat -(card_imset (favourites o i) zI); apply: subset_leq_card.
  apply/subsetP => e /imsetP[j]; rewrite inE => /forallP jfav ->.
  apply/bestP => e'; move/bestP: inb => /(_ e') /le_trans; apply.
  by rewrite 2!(blind s 1%g).
- by rewrite -!lt0n !andbb; apply/card_gt0P; exists (z (s i)).
by rewrite -!lt0n !andbb; apply/card_gt0P; exists (s i).
Qed.

Lemma sum_share o i : label_blind o -> K%:R * (\sum_s share (o s i) (z (s i))) <= (K`!)%:R.
Proof.
move=> blind; set A := favourites o i.
apply: (@le_trans _ R (K%:R * \sum_(s : 'S_K) (s i \in A)%:R / #|A|%:R)).
  by rewrite ler_wpmul2l ?ler0n //; apply: ler_sum => s _; apply: share_le_favourites.
rewrite -mulr_suml -natr_sum (partition_big (fun s : 'S_K => s i) xpredT) //=.
have -> : (\sum_j \sum_(s : 'S_K | s i == j) (s i \in A) = #|A| * hits i i)%N.
  rewrite (bigID (mem A)) /= [X in (_ + X)%N]big1 ?addn0 => [|j jA]; last first.
    by rewrite big1 // => s /eqP ->; rewrite (negbTE jA).
  rewrite (eq_bigr (fun=> hits i i)) ?sum_nat_const // => j jA.
  rewrite (hits_const i i j) /hits -sum1_card; apply: eq_big => [s|s /eqP ->].
    by rewrite inE.
  by rewrite jA.
have [A0|A0] := eqVneq #|A| 0%N; first by rewrite A0 invr0 mulr0 mulr0 ler0n.
by rewrite natrM mulrAC divff ?pnatr_eq0 // mul1r -natrM hits_sum.
Qed.

(* THE HEADLINE.  A label-blind merge is right, on average over the relabellings,
   on at most one prompt in K.  Ties are counted as a guess among the tied. *)
Theorem no_composition_by_relabelling o : label_blind o -> mean_accuracy o <= K%:R^-1.
Proof.
move=> blind; have [K0|K0] := posnP K.
  rewrite /mean_accuracy big1 ?mul0r ?invr_ge0 ?ler0n // => s _.
  by rewrite /accuracy [X in _ / X](_ : _ = 0) ?invr0 ?mulr0 // K0.
have Kp : 0 < K%:R :> R by rewrite ltr0n.
have Fp : 0 < (K`!)%:R :> R by rewrite ltr0n fact_gt0.
rewrite /mean_accuracy ler_pdivr_mulr // /accuracy -mulr_suml ler_pdivr_mulr //.
rewrite mulrAC mulVf ?gt_eqF // mul1r exchange_big /=.
rewrite -(ler_pmul2l Kp) mulr_sumr.
apply: (@le_trans _ R (\sum_(i < K) (K`!)%:R)).
  by apply: ler_sum => i _; apply: sum_share.
by rewrite sumr_const card_ord -mulr_natl.
Qed.

(* Counted strictly (a tie is wrong): at most K! right answers in K! times K. *)
Theorem relabelling_count o : label_blind o ->
  (\sum_s #|[set i | top1 (o s i) (z (s i))]| <= K`!)%N.
Proof.
move=> blind; have [K0|K0] := posnP K.
  rewrite big1 // => s _; apply/eqP; rewrite -leqn0.
  by rewrite (leq_trans (max_card _)) // card_ord K0.
have := no_composition_by_relabelling blind.
have Kp : 0 < K%:R :> R by rewrite ltr0n.
have Fp : 0 < (K`!)%:R :> R by rewrite ltr0n fact_gt0.
rewrite /mean_accuracy ler_pdivr_mulr // /accuracy -mulr_suml ler_pdivr_mulr //.
rewrite mulrAC mulVf ?gt_eqF // mul1r => le; rewrite -(ler_nat R).
apply: le_trans le; rewrite natr_sum; apply: ler_sum => s _.
rewrite -sum1_card natr_sum big_mkcond; apply: ler_sum => i _; rewrite inE.
by case: ifP => [/share_top1 ->|_]; rewrite ?share_ge0.
Qed.

(* So no label-blind merge of two or more facts is right whatever the labels. *)
Corollary never_right_for_all_labels o : (1 < K)%N -> label_blind o ->
  ~ (forall s i, top1 (o s i) (z (s i))).
Proof.
move=> K1 /relabelling_count le right; move: le; apply/negP; rewrite -ltnNge.
rewrite (eq_bigr (fun=> K)) => [|s _]; last first.
  rewrite -[RHS]card_ord -cardsT; congr #|pred_of_set _|; apply/setP => i.
  by rewrite !inE right.
by rewrite sum_nat_const card_Sn ltn_Pmulr // fact_gt0.
Qed.

(* The bound is attained, by a model that always answers z_i to x_i. *)
Theorem relabelling_bound_attained : (0 < K)%N ->
  mean_accuracy (fun s i => oh R (z i)) = K%:R^-1.
Proof.
move=> K0; have Kn : K%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
have Fn : (K`!)%:R != 0 :> R by rewrite pnatr_eq0 -lt0n fact_gt0.
have shareE i j : share (oh R (z i)) (z j) = (j == i)%:R.
  have -> : (j == i)%:R = (z j == z i)%:R :> R by rewrite (inj_eq zI).
  have bi : best (oh R (z i)) = [set z i].
    by apply: best_top1; apply/top1P => e /negbTE ei; rewrite !ohE ei eqxx ltr01.
  by rewrite /share bi cards1 divr1 inE.
rewrite /mean_accuracy /accuracy -mulr_suml exchange_big /=.
rewrite (eq_bigr (fun i : 'I_K => (hits i i)%:R)) => [|i _]; last first.
  rewrite /hits -sum1_card natr_sum [RHS]big_mkcond; apply: eq_bigr => s _.
  by rewrite shareE inE; case: (s i == i).
have hE i : (hits i i)%:R = (K`!)%:R / K%:R :> R.
  by apply: (mulfI Kn); rewrite -natrM hits_sum mulrCA divff ?mulr1.
rewrite (eq_bigr _ (fun i _ => hE i)) sumr_const card_ord.
by rewrite -[_ *+ K]mulr_natr mulfVK // mulrAC divff // mul1r.
Qed.

End Bound.
