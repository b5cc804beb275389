(* Bridges (section 6): facts of other chains that are added to an adapter, asked directly.

   Adapter 1 holds m1 facts under R1, x_i R1 -> y_i among them, and m2 facts under R2;
   all entities are different.  In units of the square of a feature vector of one hop,
   features of facts of one relation overlap by S, of different ones by L; x_i R1 R2
   overlaps by c1 with x_i R1, by far with the others under R1, by c2 with those under R2.
   A bridge raises m1 and m2.

   The coefficient of y_i never rises by it, if S c1 <= far, as in the limit
   (AngularIntegral.overlaps_of_the_limit), and falls by at most a constant over n.  So does
   the margin over every answer that no adapter writes.  Where S c1 > far, a bridge under
   R1 raises it.  The coefficient of the z can rise: a bridge much smaller than the n facts
   lifts all of them alike. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Ltac nonneg := repeat first [done | exact: ler0n | exact: ltW | apply: exprn_ge0 | apply: addr_ge0 | apply: mulr_ge0].

(* ---- how two coefficients depend on m1 and m2 ------------------------------- *)
Section Coefficients.
Variables (R : realFieldType) (S L c1 c2 far : R).

Definition own := (c1 - far) / (1 - S).
Definition spread (k : R) := 1 - S + S * k.
Definition den (m1 m2 : R) := spread m1 * spread m2 - L ^+ 2 * m1 * m2.
(* What every fact under R1 gets besides, and every fact under R2. *)
Definition rest1 m1 m2 := ((far - S * own) * spread m2 - L * m2 * (c2 - L * own)) / den m1 m2.
Definition rest2 m1 m2 := ((c2 - L * own) * spread m1 - L * m1 * (far - S * own)) / den m1 m2.
(* Of y_i in adapter 1. *)
Definition bridge_y m1 m2 := own + rest1 m1 m2.
(* Of each z_i in adapter 2, which holds m2 facts under R2, y_i R2 -> z_i among them. *)
Definition bridge_z m1 m2 := (c2 * spread m1 - L * m1 * far) / den m1 m2.

Hypotheses (S0 : 0 < S) (S1 : S < 1) (L0 : 0 <= L) (LS : L <= S).
Implicit Types (n m b : R).

Let T0 : 0 < 1 - S. Proof. by rewrite subr_gt0. Qed.
Let T' : 0 <= 1 - S. Proof. exact: ltW. Qed.
Let S' : 0 <= S. Proof. exact: ltW. Qed.
Let SL : 0 <= S ^+ 2 - L ^+ 2. Proof. by rewrite subr_ge0 ler_pexpn2r ?nnegrE // ltW. Qed.

Lemma spread_gt0 k : 0 <= k -> 0 < spread k.
Proof. by move=> k0; rewrite ltr_paddr // mulr_ge0 // ltW. Qed.

Lemma denE m1 m2 : den m1 m2 =
  (1 - S) ^+ 2 + (1 - S) * S * (m1 + m2) + (S ^+ 2 - L ^+ 2) * (m1 * m2).
Proof. by rewrite /den /spread; ring. Qed.

Lemma den_gt0 m1 m2 : 0 <= m1 -> 0 <= m2 -> 0 < den m1 m2.
Proof.
move=> m10 m20; rewrite denE -addrA ltr_paddr ?exprn_gt0 //.
by nonneg.
Qed.

Lemma rest1_plain n : 0 <= n -> rest1 n 0 = (far - S * own) / spread n.
Proof.
move=> n0; have q : spread n != 0 by rewrite gt_eqF // spread_gt0.
have t : 1 - S != 0 by rewrite gt_eqF.
by rewrite /rest1 /den /spread in q *; field; rewrite t q.
Qed.

Lemma far_own : far - S * own = (far - S * c1) / (1 - S).
Proof. by have t : 1 - S != 0 by [rewrite gt_eqF]; rewrite /own; field. Qed.

Hypotheses (near : S * c1 <= far) (answers : L * far <= S * c2).

Let d0 : 0 <= far - S * own. Proof. by rewrite far_own divr_ge0 ?subr_ge0 // ltW. Qed.
Let de : L * (far - S * own) <= S * (c2 - L * own).
Proof. by rewrite -subr_ge0 (_ : _ - _ = S * c2 - L * far) ?subr_ge0 //; ring. Qed.
Let e0 : 0 <= c2 - L * own.
Proof. by rewrite -(pmulr_rge0 _ S0); apply: le_trans de; rewrite mulr_ge0. Qed.

(* A bridge never raises the coefficient of y. *)
Theorem bridge_never_raises n m1 m2 : 0 <= n -> n <= m1 -> 0 <= m2 ->
  bridge_y m1 m2 <= bridge_y n 0.
Proof.
move=> n0 nm m20; have m10 : 0 <= m1 by apply: le_trans nm.
rewrite /bridge_y ler_add2l rest1_plain // -subr_ge0.
have q := spread_gt0 n0; have dd := den_gt0 m10 m20.
set d := far - S * own; set e := c2 - L * own.
have -> : d / spread n - rest1 m1 m2 =
    (d * (1 - S) * S * (m1 - n) + d * (S ^+ 2 - L ^+ 2) * (m1 - n) * m2
     + m2 * L * (e * (1 - S) + n * (S * e - L * d))) / (spread n * den m1 m2).
  rewrite /rest1 -/d -/e; have qn : spread n != 0 by rewrite gt_eqF.
  have dn : den m1 m2 != 0 by rewrite gt_eqF.
  by rewrite /den /spread in qn dn *; field; rewrite dn qn.
have b0 : 0 <= m1 - n by rewrite subr_ge0.
have k0 : 0 <= S * e - L * d by rewrite subr_ge0.
by apply: divr_ge0; nonneg.
Qed.

(* It falls by at most C / n, however large the bridge is. *)
Theorem bridge_loss n m1 m2 : L < S -> 0 < n -> n <= m1 -> 0 <= m2 ->
  bridge_y n 0 - bridge_y m1 m2 <=
    ((far - S * own) / S + L * (c2 - L * own) / (S ^+ 2 - L ^+ 2)) / n.
Proof.
move=> ls n0 nm m20; have n0' := ltW n0; have m10 : 0 <= m1 by apply: le_trans nm.
rewrite /bridge_y opprD addrACA subrr add0r rest1_plain //.
have sl : 0 < S ^+ 2 - L ^+ 2 by rewrite subr_gt0 ltr_pexpn2r ?nnegrE // ltW.
have dd := den_gt0 m10 m20; rewrite /rest1; set d := far - S * own; set e := c2 - L * own.
rewrite [leRHS]mulrDl; apply: ler_add.
  rewrite -mulrA -invfM ler_wpmul2l // lef_pinv ?posrE ?mulr_gt0 ?spread_gt0 //.
  by rewrite /spread ler_addr.
rewrite -mulNr opprB; apply: (@le_trans _ _ (L * m2 * e / den m1 m2)).
  by rewrite ler_wpmul2r ?invr_ge0 ?(ltW dd) // ger_addl oppr_le0 mulr_ge0 // ltW // spread_gt0.
rewrite -[leRHS]mulrA -invfM ler_pdivr_mulr // [leRHS]mulrAC ler_pdivl_mulr ?mulr_gt0 //.
rewrite (_ : L * m2 * e * _ = L * e * ((S ^+ 2 - L ^+ 2) * (n * m2))); last by ring.
apply: ler_wpmul2l; first by nonneg.
rewrite denE; apply: (@le_trans _ _ ((S ^+ 2 - L ^+ 2) * (m1 * m2))).
  by rewrite ler_wpmul2l // ler_wpmul2r.
by rewrite ler_addr; nonneg.
Qed.

(* The condition is needed: beyond it a bridge of first hops raises y. *)
Theorem bridge_can_raise n b1 : far < S * c1 -> 0 <= n -> 0 < b1 ->
  bridge_y n 0 < bridge_y (n + b1) 0.
Proof.
move=> beyond n0 b10; have nb : 0 <= n + b1 by rewrite addr_ge0 // ltW.
rewrite /bridge_y ltr_add2l !rest1_plain //.
have d : far - S * own < 0 by rewrite far_own pmulr_llt0 ?invr_gt0 // subr_lt0.
rewrite ltr_nmul2l // ltf_pinv ?posrE ?spread_gt0 //.
by rewrite /spread ltr_add2l ltr_pmul2l // ltr_addl.
Qed.

(* z: with b1 facts under R1 and b2 under R2 added, exactly when it does not rise. *)
Theorem bridge_lowers_z_iff n b1 b2 : 0 <= n -> 0 <= b1 -> 0 <= b2 ->
  (bridge_z b1 (n + b2) <= bridge_z 0 n) =
  (c2 * L ^+ 2 * n * b1 <= c2 * (1 - S) * S * b2 + c2 * (S ^+ 2 - L ^+ 2) * b1 * b2
                           + L * b1 * far * spread n).
Proof.
move=> n0 b10 b20; have m0 : 0 <= n + b2 by rewrite addr_ge0.
have q := spread_gt0 n0; have dd := den_gt0 b10 m0.
rewrite -subr_ge0 -[RHS]subr_ge0.
have -> : bridge_z 0 n - bridge_z b1 (n + b2) =
    (c2 * (1 - S) * S * b2 + c2 * (S ^+ 2 - L ^+ 2) * b1 * b2 + L * b1 * far * spread n
      - c2 * L ^+ 2 * n * b1) / (spread n * den b1 (n + b2)).
  have qn : spread n != 0 by rewrite gt_eqF.
  have t : 1 - S != 0 by rewrite gt_eqF.
  have dn : den b1 (n + b2) != 0 by rewrite gt_eqF.
  by rewrite /bridge_z /den /spread in qn dn *; field; rewrite dn qn t.
by rewrite pmulr_lge0 // invr_gt0 mulr_gt0.
Qed.

(* A bridge at least as large as the n facts lowers z. *)
Corollary large_bridge_lowers_z n b1 b2 : 0 <= c2 -> 0 <= far -> 2%:R * L ^+ 2 <= S ^+ 2 ->
  0 <= n -> 0 <= b1 -> n <= b2 -> bridge_z b1 (n + b2) <= bridge_z 0 n.
Proof.
move=> c20 f0 half n0 b10 nb; have b20 : 0 <= b2 by apply: le_trans nb.
rewrite bridge_lowers_z_iff // -addrA addrCA.
apply: (@le_trans _ _ (c2 * (S ^+ 2 - L ^+ 2) * b1 * b2)).
  rewrite (_ : c2 * L ^+ 2 * n * b1 = c2 * b1 * (L ^+ 2 * n)); last by ring.
  rewrite (_ : c2 * _ * b1 * b2 = c2 * b1 * ((S ^+ 2 - L ^+ 2) * b2)); last by ring.
  apply: ler_wpmul2l; first by nonneg.
  apply: (@le_trans _ _ (L ^+ 2 * b2)); first by rewrite ler_wpmul2l ?exprn_ge0.
  by rewrite ler_wpmul2r // ler_subr_addr -mulr2n -mulr_natl.
have q := spread_gt0 n0; by rewrite ler_addl; nonneg.
Qed.

End Coefficients.

(* ---- these are the coefficients of eq. 23 ------------------------------------ *)
Section Outputs.
Variables (R : realFieldType) (n m : nat).

Lemma edit_by_solving k (F : 'M[R]_(m, k)) (T : 'M[R]_(n, k)) (f : 'cV[R]_m) (c : 'cV[R]_k) :
  gram F \in unitmx -> gram F *m c = F^T *m f -> edit F T *m f = T *m c.
Proof. by move=> gu e; rewrite /edit -!mulmxA -e mulKmx. Qed.

(* An adapter whose k facts each lie under R1 (first) or R2, in the kernel of the page. *)
Section Kernel.
Variables (k : nat) (F : 'M[R]_(m, k)) (T : 'M[R]_(n, k)) (f : 'cV[R]_m).
Variables (first : pred 'I_k) (S L c1 c2 far key : R).
Hypotheses (S0 : 0 < S) (S1 : S < 1) (L0 : 0 <= L) (LS : L <= S).
Hypothesis gu : gram F \in unitmx.
Hypothesis gramE : forall i j, gram F i j =
  key * ((1 - S) * (i == j)%:R + (if first i == first j then S else L)).
Notation m1 := (#|first|%:R : R).
Notation m2 := (#|predC first|%:R : R).

Lemma gram_apply (c : 'cV[R]_k) i : (gram F *m c) i 0 = key * ((1 - S) * c i 0
  + S * (\sum_(j | first j == first i) c j 0) + L * (\sum_(j | first j != first i) c j 0)).
Proof.
rewrite mxE (eq_bigr (fun j => key * ((1 - S) * ((i == j)%:R * c j 0)
   + (if first i == first j then S else L) * c j 0))) => [|j _]; last first.
  by rewrite gramE -mulrA mulrDl -[(1 - S) * _ * _]mulrA.
rewrite -mulr_sumr big_split /= -mulr_sumr sum_delta -addrA; congr (_ * (_ + _)).
rewrite (bigID (fun j => first j == first i)) /= !mulr_sumr.
by congr (_ + _); apply: eq_bigr => j; [move=> /eqP ->; rewrite eqxx | rewrite eq_sym => /negbTE ->].
Qed.

(* Asked x_i R1 R2, i one of the facts under R1. *)
Theorem bridge_coefficients (i : 'I_k) : first i ->
  (forall j, (F^T *m f) j 0 = key * (if j == i then c1 else if first j then far else c2)) ->
  edit F T *m f = T *m \col_j ((j == i)%:R * own S c1 far +
    (if first j then rest1 S L c1 c2 far m1 m2 else rest2 S L c1 c2 far m1 m2)).
Proof.
move=> fi seen; apply: edit_by_solving => //; apply/colP => j.
have dn : den S L m1 m2 != 0 by rewrite gt_eqF // den_gt0 ?ler0n.
have t : 1 - S != 0 by rewrite subr_eq0 gt_eqF.
set c := \col_j _; set g1 := rest1 _ _ _ _ _ _ _ in c *; set g2 := rest2 _ _ _ _ _ _ _ in c *.
have s1 : \sum_(l | first l) c l 0 = own S c1 far + m1 * g1.
  rewrite (eq_bigr (fun l => (i == l)%:R * own S c1 far + g1)) => [|l fl]; last first.
    by rewrite mxE fl eq_sym.
  rewrite big_split /= sumr_const mulr_natl; congr (_ + _).
  rewrite -[RHS](sum_delta i (fun=> own S c1 far)) big_mkcond; apply: eq_bigr => l _.
  by have [<-|_] := eqVneq i l; rewrite ?fi // mul0r if_same.
have s2 : \sum_(l | ~~ first l) c l 0 = m2 * g2.
  rewrite (eq_bigr (fun=> g2)) => [|l fl]; first by rewrite sumr_const mulr_natl.
  rewrite mxE (negbTE fl) (_ : l == i = false) ?mul0r ?add0r //.
  by apply: contraNF fl => /eqP ->.
have h1 : (1 - S) * g1 + S * (own S c1 far + m1 * g1) + L * (m2 * g2) = far.
  by rewrite /g1 /g2 /rest1 /rest2; rewrite /den /spread in dn *; field.
have h2 : (1 - S) * g2 + S * (m2 * g2) + L * (own S c1 far + m1 * g1) = c2.
  by rewrite /g1 /g2 /rest1 /rest2; rewrite /den /spread in dn *; field.
rewrite gram_apply seen; congr (_ * _).
have [fj|fj] := boolP (first j).
  rewrite (eq_bigl first) => [|l]; last by rewrite eqb_id.
  rewrite [X in _ + L * X](eq_bigl (predC first)) => [|l]; last by rewrite /= eqb_id.
  rewrite s1 s2 mxE fj; have [_|_] := eqVneq j i; last by rewrite mul0r add0r h1.
  by rewrite mul1r mulrDr -!addrA [X in _ + X]addrA h1 /own mulrC divfK // subrK.
rewrite (eq_bigl (predC first)) => [|l]; last by rewrite /= eqbF_neg.
rewrite [X in _ + L * X](eq_bigl first) => [|l]; last by rewrite eqbF_neg negbK.
have ji : j == i = false by apply: contraNF fj => /eqP ->.
by rewrite s1 s2 mxE (negbTE fj) ji mul0r add0r h2.
Qed.

(* The coefficient of an answer that only fact i has, and of one that no fact has. *)
Corollary bridge_output (i : 'I_k) (y b : 'I_n) : first i ->
  (forall j, (F^T *m f) j 0 = key * (if j == i then c1 else if first j then far else c2)) ->
  (forall j, T y j = (j == i)%:R) -> (forall j, T b j = 0) ->
  margin (edit F T *m f) y b = bridge_y S L c1 c2 far m1 m2.
Proof.
move=> fi seen Ty Tb; rewrite (bridge_coefficients fi seen) /margin.
rewrite [X in _ - X]mxE [X in _ - X]big1 => [|j _]; last by rewrite Tb mul0r.
rewrite subr0 mxE (bigD1 i) //= big1 => [|j /negbTE ji]; last by rewrite Ty ji mul0r.
by rewrite addr0 Ty mxE eqxx fi !mul1r.
Qed.

End Kernel.
(* The margin of y over an answer b that no adapter writes, such as a known old answer to
   x R1 R2: adapter 1 with k facts under R1 alone, and with k' facts, a bridge among them.
   W is any base; adapter 2, with its bridge or without, writes neither y nor b. *)
Theorem bridge_margin (k k' : nat) (F : 'M[R]_(m, k)) (F' : 'M[R]_(m, k')) (T : 'M[R]_(n, k))
    (T' : 'M[R]_(n, k')) (first : pred 'I_k') (i : 'I_k) (i' : 'I_k') (f : 'cV[R]_m)
    (W D2 D2' : 'M[R]_(n, m)) (y b : 'I_n) (S L c1 c2 far key w : R) :
  0 < S -> S < 1 -> 0 <= L -> L < S -> S * c1 <= far -> L * far <= S * c2 ->
  gram F \in unitmx -> gram F' \in unitmx ->
  (forall j l, gram F j l = key * ((1 - S) * (j == l)%:R + S)) ->
  (forall j l, gram F' j l = key * ((1 - S) * (j == l)%:R + (if first j == first l then S else L))) ->
  (forall j, (F^T *m f) j 0 = key * (if j == i then c1 else far)) ->
  (forall j, (F'^T *m f) j 0 = key * (if j == i' then c1 else if first j then far else c2)) ->
  first i' -> (k <= #|first|)%N ->
  (forall j, T y j = (j == i)%:R) -> (forall j, T b j = 0) ->
  (forall j, T' y j = (j == i')%:R) -> (forall j, T' b j = 0) ->
  margin (D2 *m f) y b = 0 -> margin (D2' *m f) y b = 0 -> 0 <= w ->
  let plain := margin ((W + (w *: edit F T + D2)) *m f) y b in
  let bridged := margin ((W + (w *: edit F' T' + D2')) *m f) y b in
  bridged <= plain /\
  plain - bridged <= w * (((far - S * own S c1 far) / S +
     L * (c2 - L * own S c1 far) / (S ^+ 2 - L ^+ 2)) / k%:R).
Proof.
move=> S0 S1 L0 LS near ans gu gu' g g' s s' fi' kk Ty Tb Ty' Tb' o2 o2' w0 plain bridged.
have split_margin D U : margin (D *m f) y b = 0 ->
    margin ((W + (w *: U + D)) *m f) y b = margin (W *m f) y b + w * margin (U *m f) y b.
  move=> o; rewrite !mulmxDl -scalemxAl /margin in o *; rewrite !addcE !scalecE.
  by rewrite -[RHS]addr0 -o; ring.
have LS' := ltW LS.
have e := @bridge_output k F T f predT S L c1 c2 far key S0 S1 L0 LS' gu g i y b isT s Ty Tb.
have cT : #|@predT 'I_k| = k by rewrite cardT size_enum_ord.
have c0 : #|predC (@predT 'I_k)| = 0%N by apply: eq_card0.
rewrite cT c0 in e.
have e' := @bridge_output k' F' T' f first S L c1 c2 far key S0 S1 L0 LS' gu' g' i' y b fi' s' Ty' Tb'.
have k0 : 0 < k%:R :> R by rewrite ltr0n (leq_ltn_trans _ (ltn_ord i)).
have le : k%:R <= #|first|%:R :> R by rewrite ler_nat.
rewrite /plain /bridged !split_margin // e e'; split.
  by rewrite ler_add2l ler_wpmul2l // bridge_never_raises ?ler0n.
rewrite opprD addrACA subrr add0r -mulrBr ler_wpmul2l //.
by apply: bridge_loss; rewrite ?ler0n.
Qed.

End Outputs.
