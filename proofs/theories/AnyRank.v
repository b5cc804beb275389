(* Proposition 1 for adapters of any rank s: A (m x s), B (n x s), A B^T v = w.

   The least value of |A|^2 + |B|^2 is 2 |w| / |v|, at every rank.  It is attained exactly
   by A = w u^T / |u|^2, B = v u^T / |v|^2 with a vector u of |u|^2 = |w| |v|: the product
   is w v^T / |v|^2, and what is free is the direction u in the space of the s columns (the
   orthogonal gauge; a sign if s = 1).  Facts whose changes of output have rank t need s >= t. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section AnyRank.
Variables (R : rcfType) (m n s : nat).
Implicit Types (w : 'cV[R]_m) (v : 'cV[R]_n) (u : 'cV[R]_s) (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)).

Notation least w v := (2%:R * (normF w / normF v)).

(* With u = B^T v: |A|^2 >= |w|^2 / |u|^2 and |B|^2 >= |u|^2 / |v|^2, with equality iff ... *)
Lemma write_bound w u A : u != 0 -> A *m u = w ->
  sqF w / sqF u <= sqF A ?= iff (A == rk1 w u).
Proof. by move=> u0 Au; rewrite -sqF_rk1; apply: proposition1_frobenius. Qed.

Lemma read_bound v u B : v != 0 -> B^T *m v = u ->
  sqF u / sqF v <= sqF B ?= iff (B^T == rk1 u v).
Proof. by move=> v0 Bv; rewrite -sqF_rk1 -(sqF_tr B); apply: proposition1_frobenius. Qed.

Lemma normF_gt0 a b (M : 'M[R]_(a, b)) : (0 < normF M) = (M != 0).
Proof. by rewrite lt_def normF_eq0 normF_ge0 andbT. Qed.

(* AM-GM, for W / p + p / V. *)
Lemma am_gm w v (p : R) : v != 0 -> 0 < p ->
  least w v <= sqF w / p + p / sqF v ?= iff (p == normF w * normF v).
Proof.
move=> v0 p0; rewrite -(normF_sq w) -(normF_sq v).
have V0 : 0 < normF v by rewrite normF_gt0.
set W := normF w; set V := normF v in V0 *.
have pn : p != 0 by rewrite gt_eqF.
have Vn : V != 0 by rewrite gt_eqF.
have e : W ^+ 2 / p + p / V ^+ 2 - 2%:R * (W / V) = (p - W * V) ^+ 2 / (p * V ^+ 2).
  by field; rewrite pn Vn.
have d : 0 < p * V ^+ 2 by rewrite mulr_gt0 // exprn_gt0.
split; first by rewrite -subr_ge0 e divr_ge0 ?sqr_ge0 // ltW.
rewrite eq_sym -subr_eq0 e mulf_eq0 invr_eq0 (gt_eqF d) orbF sqrf_eq0.
by rewrite subr_eq0.
Qed.

(* Prop. 1 at rank s: |A|^2 + |B|^2 >= 2 |w| / |v| wherever A B^T v = w. *)
Theorem any_rank_bound w v A B : v != 0 -> A *m B^T *m v = w ->
  least w v <= sqF A + sqF B.
Proof.
move=> v0; rewrite -mulmxA; set u := B^T *m v => Au.
have [u0|u0] := eqVneq u 0.
  have -> : w = 0 by rewrite -Au u0 mulmx0.
  rewrite (_ : normF 0 = 0); last by apply/eqP; rewrite normF_eq0.
  by rewrite mul0r mulr0 addr_ge0 ?sqF_ge0.
have p0 : 0 < sqF u by rewrite sqF_gt0.
apply: le_trans (leif_le (am_gm w v0 p0)) _.
apply: ler_add; first exact: (leif_le (write_bound u0 Au)).
exact: (leif_le (read_bound v0 (erefl u))).
Qed.

(* Prop. 1 at rank s, all minimisers: A = w u^T / |u|^2, B = v u^T / |v|^2 with
   |u|^2 = |w| |v|. *)
Theorem any_rank_minimisers w v A B : w != 0 -> v != 0 ->
  (A *m B^T *m v = w /\ sqF A + sqF B = least w v) <->
  exists u, [/\ sqF u = normF w * normF v, A = rk1 w u & B^T = rk1 u v].
Proof.
move=> w0 v0; split=> [[]|[u [pu -> Bu]]].
  rewrite -mulmxA; set u := B^T *m v => Au cost.
  have u0 : u != 0 by apply: contraNneq w0 => u0; rewrite -Au u0 mulmx0.
  have p0 : 0 < sqF u by rewrite sqF_gt0.
  have ag := am_gm w v0 p0; have wb := write_bound u0 Au.
  have rb := read_bound v0 (erefl u); have sum := leif_add wb rb.
  have le : sqF w / sqF u + sqF u / sqF v <= least w v by rewrite -cost; apply: (leif_le sum).
  have e1 : least w v = sqF w / sqF u + sqF u / sqF v.
    by apply/eqP; rewrite eq_le le (leif_le ag).
  exists u; split.
  - by apply/eqP; rewrite -(eq_leif ag) e1.
  - by have := eq_leif sum; rewrite cost -e1 eqxx => /esym /andP[/eqP].
  by have := eq_leif sum; rewrite cost -e1 eqxx => /esym /andP[_ /eqP].
have p0 : 0 < sqF u by rewrite pu mulr_gt0 // normF_gt0.
have u0 : u != 0 by rewrite -sqF_gt0.
have Bv : B^T *m v = u by rewrite Bu rk1_feasible.
have Au : rk1 w u *m u = w by rewrite rk1_feasible.
split; first by rewrite -mulmxA Bv.
rewrite -(sqF_tr B) Bu !sqF_rk1; apply/eqP; rewrite eq_sym (eq_leif (am_gm w v0 p0)).
by rewrite pu.
Qed.

(* They all have one product. *)
Theorem any_rank_product w v A B : w != 0 -> v != 0 ->
  A *m B^T *m v = w -> sqF A + sqF B = least w v -> A *m B^T = rk1 w v.
Proof.
move=> w0 v0 Av cost.
have /(any_rank_minimisers A B w0 v0)[u [pu -> ->]] := conj Av cost.
have p0 : sqF u != 0 by rewrite pu mulf_neq0 // normF_eq0.
rewrite /rk1 -scalemxAl -scalemxAr scalerA mulmxA -(mulmxA w) colT_mul mul_mx_scalar.
by rewrite -/(sqF u) -scalemxAl scalerA mulrAC mulVf // mul1r.
Qed.

(* And there is one at every rank. *)
Theorem any_rank_attained w v : (0 < s)%N -> v != 0 ->
  exists A B, A *m B^T *m v = w /\ sqF A + sqF B = least w v.
Proof.
move=> s0 v0; have [->|w0] := eqVneq w 0.
  exists 0, 0; rewrite !mul0mx /normF; split=> //.
  have z a b : sqF (0 : 'M[R]_(a, b)) = 0 by apply/eqP; rewrite sqF_eq0.
  by rewrite !z addr0 sqrtr0 mul0r mulr0.
pose i := Ordinal s0; pose p := normF w * normF v.
have p0 : 0 <= p by rewrite mulr_ge0 ?normF_ge0.
pose u : 'cV[R]_s := Num.sqrt p *: delta_mx i 0.
have pu : sqF u = p.
  rewrite sqFZ sqr_sqrtr // [X in _ * X](_ : _ = 1) ?mulr1 //.
  rewrite sqFE (bigD1 i) //= big_ord1 mxE !eqxx expr1n big1 ?addr0 // => j /negbTE ji.
  by rewrite big_ord1 mxE ji expr0n.
exists (rk1 w u), (rk1 u v)^T.
by apply/any_rank_minimisers => //; exists u; rewrite trmxK.
Qed.

End AnyRank.

(* A LoRA of rank s holds facts only if the rank of their changes T is at most s. *)
Theorem rank_needed (R : realFieldType) m n s k (F : 'M[R]_(n, k)) (T : 'M[R]_(m, k))
    (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) :
  A *m B^T *m F = T -> (\rank T <= s)%N.
Proof.
move=> <-; rewrite -mulmxA; apply: leq_trans (mxrankM_maxl _ _) _.
exact: rank_leq_col.
Qed.
