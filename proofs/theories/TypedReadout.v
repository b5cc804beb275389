(* Answers with kinds (sections 8b and 8d): where a direct question moves to a place.

   The score of entity e is (1 - t) o_e + t K, K the sum of the o of its kind.  Within a kind
   the order is that of the o; between kinds it is a race of straight lines in t.

   Asked x_i R1 R2 of the sum of two adapters of n >= 2 fresh facts each, the best person is
   the bridge entity y_i and the places z_j are all alike (eq. 25).  The places win iff
       t > t*(n) = S A / B - (B - A) / (B (n - 1)),   A = (c1 - far) / (1 - S),
                                                      B = c2 - far + S A. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers ManyFacts.
From LoRA Require Import LabelBlindRules Arrow Bridges.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Race.
Variables (R : realFieldType) (N g : nat) (kind : 'I_N -> 'I_g) (t : R).
Implicit Types (o : 'cV[R]_N) (e : 'I_N).

Definition same_kind : 'M[R]_N := \matrix_(e, e') ((1 - t) * (e == e')%:R + t * (kind e == kind e')%:R).
Definition of_kind o v : R := \sum_(e | kind e == v) o e 0.
Definition score o e : R := (same_kind *m o) e 0.

Lemma scoreE o e : score o e = (1 - t) * o e 0 + t * of_kind o (kind e).
Proof.
rewrite /score mxE (eq_bigr (fun e' => (1 - t) * ((e == e')%:R * o e' 0)
  + t * ((kind e' == kind e)%:R * o e' 0))) => [|e' _]; last first.
  by rewrite mxE eq_sym [kind e == _]eq_sym eq_sym mulrDl !mulrA.
rewrite big_split /= -!mulr_sumr sum_delta /of_kind [in RHS]big_mkcond.
by congr (_ + _ * _); apply: eq_bigr => e' _; case: (_ == _); rewrite ?mul1r ?mul0r.
Qed.

(* Within a kind the order of answers does not depend on t. *)
Theorem order_within_kind o e e' : t < 1 -> kind e = kind e' -> (score o e < score o e') = (o e 0 < o e' 0).
Proof. by move=> t1 k; rewrite !scoreE k ltr_add2r ltr_pmul2l // subr_gt0. Qed.

(* Between kinds: t against the lead of one answer and the mass of the other kind. *)
Theorem race_between_kinds o e e' :
  let lead := o e 0 - o e' 0 in let mass := of_kind o (kind e') - of_kind o (kind e) in
  (score o e < score o e') = (lead < t * (lead + mass)).
Proof.
move=> lead mass; rewrite !scoreE -[RHS]subr_gt0 -[LHS]subr_gt0; congr (0 < _).
by rewrite /lead /mass; ring.
Qed.

End Race.

Section Threshold.
Variables (R : realFieldType) (S c1 c2 far : R).
Notation A := (own S c1 far).
Definition pull := c2 - far + S * A.                    (* B *)
Definition t_star (n : R) := S * A / pull - (pull - A) / (pull * (n - 1)).

(* The quotient of toytransformer.typed: y, z the coefficients of y_i and of every z, Y and
   Z the sums of the kinds. *)
Theorem t_star_quotient n : 1 - S != 0 -> spread S n != 0 -> n - 1 != 0 -> pull != 0 ->
  let y := A + (far - S * A) / spread S n in let Y := (c1 + (n - 1) * far) / spread S n in
  let z := c2 / spread S n in let Z := n * z in
  t_star n = (y - z) / ((y - z) + (Z - Y)).
Proof.
move=> s0 q0 n0 p0 y Y z Z.
have e1 : y - z = A - pull / spread S n by rewrite /y /z /pull; field.
have cE : c1 = far + (1 - S) * A by rewrite /own; field.
have e2 : y - z + (Z - Y) = pull * (n - 1) / spread S n.
  rewrite e1 /Z /z /Y /pull; rewrite /spread in q0 *.
  by move: (own S c1 far) cE => a ->; field.
rewrite e2 e1 /t_star; rewrite /spread in q0 *; field.
by rewrite q0 n0 p0.
Qed.

(* It rises with n to S A / B, if B >= A. *)
Theorem t_star_rises n n' : 0 < pull -> A <= pull -> 1 < n -> n <= n' ->
  t_star n <= t_star n' <= S * A / pull.
Proof.
move=> p0 Ap n1 nn; have n0 : 0 < n - 1 by rewrite subr_gt0.
have n0' : 0 < n' - 1 by rewrite subr_gt0 (lt_le_trans n1).
have d : 0 <= pull - A by rewrite subr_ge0.
apply/andP; split; last by rewrite ger_addl oppr_le0 divr_ge0 // ltW // mulr_gt0.
rewrite ler_add2l ler_opp2 ler_wpmul2l // lef_pinv ?posrE ?mulr_gt0 //.
by rewrite ler_pmul2l // ler_add2r.
Qed.

End Threshold.

Section Direct.
Variables (R : realFieldType) (N m n g : nat) (kind : 'I_N -> 'I_g) (t : R).
Variables (F1 F2 : 'M[R]_(m, n)) (y z : 'I_n -> 'I_N) (f : 'cV[R]_m) (i : 'I_n).
Variables (S c1 c2 far key : R) (people places : 'I_g).
Hypotheses (n1 : (1 < n)%N) (S0 : 0 < S) (S1 : S < 1) (key0 : key != 0).
Hypotheses (gu1 : gram F1 \in unitmx) (gu2 : gram F2 \in unitmx).
Hypothesis gram1E : forall j l, gram F1 j l = key * ((1 - S) * (j == l)%:R + S).
Hypothesis gram2E : forall j l, gram F2 j l = key * ((1 - S) * (j == l)%:R + S).
Hypothesis seen1 : forall j, (F1^T *m f) j 0 = key * (if j == i then c1 else far).
Hypothesis seen2 : F2^T *m f = (key * c2) *: const_mx 1.
Hypotheses (yI : injective y) (zI : injective z) (yz : forall j l, y j != z l).
Hypotheses (y_kind : forall j, kind (y j) = people) (z_kind : forall j, kind (z j) = places).
Hypothesis apart : people != places.
Hypotheses (near : far <= c1) (up : S * c1 <= far) (p0 : 0 < pull S c1 c2 far).

Notation A := (own S c1 far).
Notation q := (spread S n%:R).
Notation rest := ((far - S * A) / q).
Definition direct : 'cV[R]_N := edit F1 (words R y) *m f + edit F2 (words R z) *m f.

Let q0 : 0 < q. Proof. by rewrite spread_gt0 ?ler0n. Qed.
Let s0 : 0 < 1 - S. Proof. by rewrite subr_gt0. Qed.

Lemma first_hop : edit F1 (words R y) *m f = words R y *m \col_j ((j == i)%:R * A + rest).
Proof.
have z0 : 0 <= (0 : R) by [].
rewrite (@bridge_coefficients R N m n F1 (words R y) f predT S 0 c1 c2 far key S0 S1 z0 (ltW S0) gu1 gram1E i isT seen1).
congr (_ *m _); apply/colP => j; rewrite !mxE; congr (_ + _).
have -> : #|@predT 'I_n| = n by rewrite cardT size_enum_ord.
have -> : #|predC (@predT 'I_n)| = 0%N by apply: eq_card0.
by rewrite rest1_plain ?ler0n // ltW.
Qed.

Lemma second_hop : edit F2 (words R z) *m f = (c2 / q) *: (words R z *m const_mx 1).
Proof.
have kq : key * q != 0 by rewrite mulf_neq0 // gt_eqF.
rewrite (@eq25 R N m n F2 (words R z) f (key * q) (key * c2) gu2 kq) //.
  by rewrite invfM mulrACA divff // mul1r.
apply/colP => j; rewrite scalecE [LHS]mxE [const_mx _ _ _]mxE mulr1.
rewrite (eq_bigr (fun l => key * ((1 - S) * (j == l)%:R + S))) => [|l _].
  rewrite -mulr_sumr big_split /= -mulr_sumr sumr_const card_ord.
  rewrite (bigD1 j) //= eqxx big1 ?addr0 => [|l /negbTE lj]; last by rewrite eq_sym lj.
  by rewrite mulr1 -[S *+ n]mulr_natr.
by rewrite [const_mx _ _ _]mxE mulr1 gram2E.
Qed.

Lemma direct_y j : direct (y j) 0 = (j == i)%:R * A + rest.
Proof.
by rewrite /direct first_hop second_hop addcE scalecE words_at // mxE words_off ?mulr0 ?addr0.
Qed.

Lemma direct_z j : direct (z j) 0 = c2 / q.
Proof.
rewrite /direct first_hop second_hop addcE scalecE words_off => [|l]; last by rewrite eq_sym.
by rewrite words_at // mxE mulr1 add0r.
Qed.

Lemma direct_else e : (forall j, e != y j) -> (forall j, e != z j) -> direct e 0 = 0.
Proof.
by move=> ey ez; rewrite /direct first_hop second_hop addcE scalecE !words_off // mulr0 addr0.
Qed.

Lemma sum_over (x : 'I_n -> 'I_N) v : injective x -> (forall j, kind (x j) = v) ->
  (forall e, kind e = v -> (forall j, e != x j) -> direct e 0 = 0) ->
  of_kind kind direct v = \sum_j direct (x j) 0.
Proof.
move=> xI xk rest0; rewrite /of_kind (bigID (mem [set x j | j in 'I_n])) /=.
rewrite [X in _ + X]big1 ?addr0 => [|e /andP[/eqP ek ex]]; last first.
  by apply: rest0 => // j; apply: contraNneq ex => ->; apply/imsetP; exists j.
rewrite (eq_bigl (mem [set x j | j in 'I_n])) => [|e]; last first.
  apply/andP/idP => [[]//|/imsetP[j _ ->]]; split; first by rewrite xk.
  exact: imset_f.
by rewrite big_imset //= => a b _ _; apply: xI.
Qed.

Lemma people_sum : of_kind kind direct people = (c1 + (n%:R - 1) * far) / q.
Proof.
rewrite (sum_over yI y_kind) => [|e ek ey]; last first.
  by apply: direct_else => // j; apply: contraNneq apart => ez; rewrite -ek ez z_kind.
rewrite (eq_bigr (fun j => (i == j)%:R * A + rest)) => [|j _]; last by rewrite direct_y eq_sym.
rewrite big_split /= sumr_const card_ord (sum_delta i (fun=> A)) -[_ *+ n]mulr_natl.
have cE : c1 = far + (1 - S) * A by rewrite /own mulrC divfK ?gt_eqF // addrC subrK.
have q' : q != 0 by rewrite gt_eqF.
by move: (own S c1 far) cE q' => a ->; rewrite /spread; move: n%:R => x q'; field.
Qed.

Lemma places_sum : of_kind kind direct places = n%:R * (c2 / q).
Proof.
rewrite (sum_over zI z_kind) => [|e ek ez]; last first.
  by apply: direct_else => // j; apply: contraNneq apart => ey; rewrite -ek ey y_kind.
rewrite (eq_bigr _ (fun j _ => direct_z j)) sumr_const card_ord.
by rewrite -[_ *+ n]mulr_natl.
Qed.

(* The places tie at every t: none is the only best, so at most one in n is right. *)
Theorem places_tie j l : score kind t direct (z j) = score kind t direct (z l).
Proof. by rewrite !scoreE !direct_z !z_kind. Qed.

(* A place beats the bridge entity, and with it every person, iff t > t*(n). *)
Theorem direct_answer_is_a_place j :
  (score kind t direct (y i) < score kind t direct (z j)) = (t_star S c1 c2 far n%:R < t).
Proof.
rewrite race_between_kinds y_kind z_kind people_sum places_sum direct_y direct_z eqxx mul1r.
have nn : 0 < n%:R - 1 :> R by rewrite subr_gt0 ltr1n.
have := @t_star_quotient R S c1 c2 far n%:R; rewrite !gt_eqF // => /(_ isT isT isT isT) /= ->.
set lead := A + rest - c2 / q; set mass := _ - _ / q.
have pos : 0 < lead + mass.
  have -> : lead + mass = pull S c1 c2 far * (n%:R - 1) / q.
    have cE : c1 = far + (1 - S) * A by rewrite /own mulrC divfK ?gt_eqF // addrC subrK.
    have q' : q != 0 by rewrite gt_eqF.
    rewrite /lead /mass /pull.
    by move: (own S c1 far) cE q' => a ->; rewrite /spread; move: n%:R => x q'; field.
  by rewrite divr_gt0 // mulr_gt0.
by rewrite ltr_pdivr_mulr.
Qed.

(* Among people the bridge entity is best. *)
Theorem bridge_entity_is_the_best_person e : 0 <= t < 1 -> kind e = people ->
  score kind t direct e <= score kind t direct (y i).
Proof.
move=> /andP[t0 /ltW t1] ek; rewrite !scoreE ek y_kind ler_add2r ler_wpmul2l ?subr_ge0 //.
have A0 : 0 <= A by rewrite divr_ge0 ?subr_ge0 // ltW.
have r0 : 0 <= rest by rewrite divr_ge0 ?far_own ?divr_ge0 ?subr_ge0 // ltW.
rewrite direct_y eqxx mul1r; have [j /eqP ->|no] := pickP (fun j => e == y j).
  by rewrite direct_y ler_add2r; case: (j == i); rewrite ?mul1r ?mul0r.
rewrite direct_else ?addr_ge0 // => j; first by rewrite no.
by apply: contraNneq apart => ez; rewrite -ek ez z_kind.
Qed.

End Direct.
