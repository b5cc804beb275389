(* Proposition 1 (Proposition 4 of the appendix): the least adapter that stores
   one fact.  v: the features of the prompt; w: the change of output it needs. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section RankOne.
Variables (R : realFieldType) (m n : nat).
Implicit Types (w p : 'cV[R]_m) (v q : 'cV[R]_n).

Definition rk1 w v : 'M[R]_(m, n) := (sqF v)^-1 *: (w *m v^T).

Lemma gram1E v : gram v = (sqF v)%:M.
Proof. by rewrite /gram colT_mul. Qed.

Lemma gram1_unit v : (gram v \in unitmx) = (v != 0).
Proof. by rewrite gram1E unitmxE det_scalar1 unitfE sqF_eq0. Qed.

Lemma edit1E w v : edit v w = rk1 w v.
Proof.
by rewrite /edit gram1E invmx_scalar mul_mx_scalar -scalemxAl /rk1.
Qed.

Lemma rk1_feasible w v : v != 0 -> rk1 w v *m v = w.
Proof. by move=> v0; rewrite -edit1E edit_feasible ?gram1_unit. Qed.

Lemma outer_apply p q (x : 'cV[R]_n) : p *m q^T *m x = dotF q x *: p.
Proof. by rewrite -mulmxA colT_mul mul_mx_scalar. Qed.

Lemma rk1_apply w v (x : 'cV[R]_n) : rk1 w v *m x = (dotF v x / sqF v) *: w.
Proof. by rewrite /rk1 -scalemxAl outer_apply scalerA mulrC. Qed.

(* P1': Frobenius version *)
Theorem proposition1_frobenius w v (D : 'M[R]_(m, n)) :
  v != 0 -> D *m v = w -> sqF (rk1 w v) <= sqF D ?= iff (D == rk1 w v).
Proof.
by move=> v0 h; rewrite -edit1E; apply: edit_least_frobenius; rewrite ?gram1_unit.
Qed.

Lemma sqF_rk1 w v : sqF (rk1 w v) = sqF w / sqF v.
Proof.
rewrite /rk1 sqFZ sqF_outer.
have [->|v0] := eqVneq v 0.
  by rewrite (_ : sqF 0 = 0) ?invr0 ?mulr0 ?expr0n ?mul0r //; apply/eqP; rewrite sqF_eq0.
by have : sqF v != 0 by [rewrite sqF_eq0]; move=> ?; field.
Qed.

(* Exact energy identity behind Prop. 1 (no calculus, no square roots). *)
Theorem proposition1_identity w v p q :
  v != 0 -> p *m q^T *m v = w ->
  (sqF p + sqF q) ^+ 2 =
    4%:R * (sqF w / sqF v) + (sqF p - sqF q) ^+ 2
    + 4%:R * sqF (p *m q^T - rk1 w v).
Proof.
move=> v0 h; have gu : gram v \in unitmx by rewrite gram1_unit.
have := edit_pythagoras gu h; rewrite edit1E sqF_outer sqF_rk1 => e.
have -> : (sqF p + sqF q) ^+ 2 = 4%:R * (sqF p * sqF q) + (sqF p - sqF q) ^+ 2.
  by ring.
rewrite e; move: (sqF w / sqF v) (sqF (_ - _)) => x y; ring.
Qed.

(* Prop. 1 proper: any minimiser of |p|^2+|q|^2 has this product. *)
Theorem proposition1_product w v p q :
  v != 0 -> p *m q^T *m v = w ->
  (forall p' q', p' *m q'^T *m v = w -> sqF p + sqF q <= sqF p' + sqF q') ->
  p *m q^T = rk1 w v.
Proof.
move=> v0 h minpq; have gu : gram v \in unitmx by rewrite gram1_unit.
have [] := minimisers_have_product_edit gu (T := w) (A := p) (B := q) h.
  by move=> A' B' h'; apply: minpq.
by rewrite edit1E.
Qed.

(* Without the regulariser "must have the form" is false: whenever m, n are
   such that some u is orthogonal to v, the rank-one edit is not unique. *)
Theorem proposition1_needs_regulariser w v u :
  v != 0 -> w != 0 -> u != 0 -> dotF u v = 0 ->
  let q := (sqF v)^-1 *: v + u in
  w *m q^T *m v = w /\ w *m q^T <> rk1 w v.
Proof.
move=> v0 w0 u0 o q; have sv : sqF v != 0 by rewrite sqF_eq0.
split.
  rewrite -mulmxA colT_mul /q dotFDl dotFZl o addr0 -/(sqF v) mulVf //.
  by rewrite mulmx1.
rewrite /q linearD /= linearZ /= mulmxDr -scalemxAr -/(rk1 w v).
move/eqP; rewrite -subr_eq0 addrAC subrr add0r -sqF_eq0 sqF_outer mulf_eq0.
by rewrite !sqF_eq0 (negbTE w0) (negbTE u0).
Qed.

End RankOne.

Section Sqrt.
Variables (R : rcfType) (m n : nat).
Implicit Types (w p : 'cV[R]_m) (v q : 'cV[R]_n).

Definition normF a b (A : 'M[R]_(a, b)) : R := Num.sqrt (sqF A).

Lemma normF_ge0 a b (A : 'M[R]_(a, b)) : 0 <= normF A.
Proof. exact: sqrtr_ge0. Qed.

Lemma normF_sq a b (A : 'M[R]_(a, b)) : normF A ^+ 2 = sqF A.
Proof. by rewrite sqr_sqrtr ?sqF_ge0. Qed.

Lemma normF_eq0 a b (A : 'M[R]_(a, b)) : (normF A == 0) = (A == 0).
Proof. by rewrite sqrtr_eq0 le_eqVlt ltNge sqF_ge0 orbF sqF_eq0. Qed.

(* Prop. 1: |p|^2 + |q|^2 >= 2 |w| / |v| for all p, q with p q^T v = w; equality iff
   p q^T = w v^T / |v|^2 (eq. 1) and |p| = |q|. *)
Theorem proposition1_bound w v p q :
  v != 0 -> p *m q^T *m v = w ->
  2%:R * (normF w / normF v) <= sqF p + sqF q
    ?= iff ((p *m q^T == rk1 w v) && (sqF p == sqF q)).
Proof.
move=> v0 h; have := proposition1_identity v0 h.
set S := sqF p + sqF q; set b := normF w / normF v.
have b0 : 0 <= b by rewrite divr_ge0 ?normF_ge0.
have S0 : 0 <= S by rewrite addr_ge0 ?sqF_ge0.
have -> : sqF w / sqF v = b ^+ 2 by rewrite expr_div_n !normF_sq.
set x := (_ - _) ^+ 2; set y := sqF (_ - _) => e.
have x0 : 0 <= x by apply: sqr_ge0.
have y0 : 0 <= 4%:R * y by rewrite mulr_ge0 ?sqF_ge0 ?ler0n.
have e' : S ^+ 2 = (2%:R * b) ^+ 2 + (x + 4%:R * y) by rewrite e; ring.
have b20 : 0 <= 2%:R * b by rewrite mulr_ge0 ?ler0n.
have le2 : (2%:R * b) ^+ 2 <= S ^+ 2 by rewrite e' ler_addl addr_ge0.
split; first by rewrite -(ler_pexpn2r (n := 2)) // nnegrE.
have n4 : (4%:R == 0 :> R) = false by rewrite pnatr_eq0.
rewrite -(eqr_expn2 (n := 2)) // e' -subr_eq0 opprD addrA subrr add0r oppr_eq0.
by rewrite paddr_eq0 // [4%:R * y == 0]mulf_eq0 n4 /= /x /y sqrf_eq0 sqF_eq0 !subr_eq0 andbC.
Qed.

(* Prop. 1, existence: the bound 2 |w| / |v| is attained. *)
Theorem proposition1_attained w v : v != 0 ->
  exists p q, p *m q^T *m v = w /\ sqF p + sqF q = 2%:R * (normF w / normF v).
Proof.
move=> v0; have nv : normF v != 0 by rewrite normF_eq0.
have z0 a b : sqF (0 : 'M[R]_(a, b)) = 0 by apply/eqP; rewrite sqF_eq0.
have [->|w0] := eqVneq w 0.
  exists 0, 0; rewrite !mul0mx !z0 addr0; split=> //.
  by rewrite /normF z0 sqrtr0 mul0r mulr0.
have nw : normF w != 0 by rewrite normF_eq0.
set al := Num.sqrt (normF w / normF v).
have al2 : al ^+ 2 = normF w / normF v.
  by rewrite sqr_sqrtr // divr_ge0 ?normF_ge0.
exists ((al / normF w) *: w), ((al / normF v) *: v); split.
  rewrite outer_apply dotFZl -/(sqF v) -normF_sq scalerA.
  rewrite (_ : _ * _ = 1) ?scale1r //.
  transitivity (al ^+ 2 * (normF v / normF w)); first by field; apply/andP.
  by rewrite al2; field; apply/andP.
rewrite !sqFZ -!normF_sq !expr_div_n !divfK ?expf_neq0 // al2.
by ring.
Qed.

End Sqrt.

Section Factors.
Variables (R : realFieldType) (n m : nat).
Implicit Types (w p : 'cV[R]_n) (v q : 'cV[R]_m).

Lemma outer_inj w v q : w != 0 -> w *m v^T = w *m q^T -> v = q.
Proof.
move=> w0 /eqP; rewrite -subr_eq0 -mulmxBr -linearB /= -sqF_eq0 sqF_outer.
by rewrite mulf_eq0 !sqF_eq0 (negbTE w0) subr_eq0 => /eqP.
Qed.

Theorem rk1_factors w v p q : w != 0 -> v != 0 -> p *m q^T = rk1 w v ->
  exists2 t, t != 0 & p = t *: w /\ q = (t * sqF v)^-1 *: v.
Proof.
move=> w0 v0 e.
have e1 : dotF q v *: p = w by rewrite -outer_apply e rk1_feasible.
have d0 : dotF q v != 0.
  by apply/eqP => d0; move: w0; rewrite -e1 d0 scale0r eqxx.
have pE : p = (dotF q v)^-1 *: w by rewrite -e1 scalerA mulVf // scale1r.
exists (dotF q v)^-1; first by rewrite invr_eq0.
split=> //.
have /(outer_inj w0) : w *m ((dotF q v)^-1 *: q)^T = w *m ((sqF v)^-1 *: v)^T.
  by rewrite !linearZ /= -/(rk1 w v) -e [in RHS]pE -scalemxAl.
move/(congr1 (fun x => dotF q v *: x)); rewrite !scalerA divff // scale1r => {1}->.
by rewrite invfM invrK.
Qed.

(* Both gauges are legitimate adapters: same product, and both are minimisers
   of |p|^2+|q|^2 exactly when t^4 |w|^2 |v|^2 = 1. *)
Theorem factor_product t w v : t != 0 ->
  (t *: w) *m ((t * sqF v)^-1 *: v)^T = rk1 w v.
Proof.
move=> t0; rewrite linearZ /= -scalemxAl -scalemxAr scalerA /rk1; congr (_ *: _).
by rewrite invfM mulrA divff // mul1r.
Qed.

Theorem factor_balanced t w v : t != 0 -> v != 0 ->
  (sqF (t *: w) == sqF ((t * sqF v)^-1 *: v)) = (t ^+ 4 * sqF w * sqF v == 1).
Proof.
move=> t0 v0; have sv : sqF v != 0 by rewrite sqF_eq0.
have d : t ^+ 2 * sqF v != 0 by rewrite mulf_neq0 // expf_neq0.
rewrite !sqFZ -(inj_eq (mulIf d)).
move: (sqF w) (sqF v) sv d => W V sv d.
rewrite (_ : (t * V)^-1 ^+ 2 * V * (t ^+ 2 * V) = 1); last by field; apply/andP.
by congr (_ == _); ring.
Qed.

End Factors.

Section Minimisers.
Variables (R : rcfType) (m n : nat).
Implicit Types (w p : 'cV[R]_m) (v q : 'cV[R]_n).

(* Prop. 1, all minimisers of rank one: p = t w, q = v / (t |v|^2) with
   t^4 |w|^2 |v|^2 = 1. *)
Theorem proposition1_minimisers w v p q : w != 0 -> v != 0 ->
  (p *m q^T *m v = w /\ sqF p + sqF q = 2%:R * (normF w / normF v)) <->
  exists t, [/\ t ^+ 4 * sqF w * sqF v = 1, p = t *: w & q = (t * sqF v)^-1 *: v].
Proof.
move=> w0 v0; split=> [[h e]|[t [t4 -> ->]]].
  have [_] := proposition1_bound v0 h; rewrite e eqxx => /esym /andP[/eqP pq /eqP bal].
  have [t t0 [pE qE]] := rk1_factors w0 v0 pq; exists t; split=> //.
  by apply/eqP; rewrite -factor_balanced // -pE -qE bal.
have t0 : t != 0.
  by apply/eqP => t0; move/eqP: t4; rewrite t0 expr0n /= !mul0r eq_sym oner_eq0.
have fe : t *: w *m ((t * sqF v)^-1 *: v)^T *m v = w.
  by rewrite factor_product // rk1_feasible.
split=> //; have [_] := proposition1_bound v0 fe.
rewrite factor_product // eqxx factor_balanced // t4 eqxx /=.
by move=> /eqP.
Qed.

(* ... so there are two, which differ by a common sign of p and q. *)
Theorem proposition1_gauge_is_sign w v (t t' : R) : w != 0 -> v != 0 ->
  t ^+ 4 * sqF w * sqF v = 1 -> t' ^+ 4 * sqF w * sqF v = 1 -> t' = t \/ t' = - t.
Proof.
move=> w0 v0 e e'; have W0 : sqF w * sqF v != 0 by rewrite mulf_neq0 // sqF_eq0.
have /eqP : t' ^+ 4 = t ^+ 4 by apply: (mulIf W0); rewrite !mulrA e e'.
rewrite -subr_eq0 (exprM _ 2 2) (exprM t 2 2) subr_sqr mulf_eq0 => /orP[]/eqP h.
  move/eqP: h; rewrite subr_sqr mulf_eq0 subr_eq0 addr_eq0.
  by case/orP => /eqP ->; [left|right].
have /eqP : t' ^+ 2 = 0.
  apply/eqP; move/eqP: h; rewrite paddr_eq0 ?sqr_ge0 // => /andP[] //.
rewrite sqrf_eq0 => /eqP t0; move/eqP: e'.
by rewrite t0 expr0n /= !mul0r eq_sym oner_eq0.
Qed.

End Minimisers.
