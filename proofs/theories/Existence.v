(* Eq. 23: the least factors of several facts exist.

   LeastNormEdit.v shows what every minimiser of |A|^2 + |B|^2 with A B^T F = T looks like,
   and that balanced factors are minimisers if there are any.  Here: there is a minimiser,
   at every rank that the facts fit into.  Over the real numbers, by compactness: the pairs
   (A, B) that store the facts are a closed set, and those that cost no more than a given
   pair are bounded.  No singular value decomposition is needed. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import boolp classical_sets mathcomp_extra reals topology normedtype.
From LoRA Require Import Frobenius LeastNormEdit AnyRank.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Import numFieldTopology.Exports numFieldNormedType.Exports.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section Compactness.
Variable R : realType.

Lemma continuous_ext (V : topologicalType) (f g : V -> R) :
  f =1 g -> continuous f -> continuous g.
Proof. by move=> /funext ->. Qed.

Lemma sum_continuous (V : topologicalType) (I : Type) (r : seq I) (f : I -> V -> R) :
  (forall i, continuous (f i)) -> continuous (fun x => \sum_(i <- r) f i x).
Proof.
move=> fc; elim: r => [|i r IH].
  apply: (@continuous_ext _ (fun=> 0)) => [y|x]; first by rewrite big_nil.
  exact: cvg_cst.
apply: (@continuous_ext _ (fun x => f i x + \sum_(j <- r) f j x)) => [x|x].
  by rewrite big_cons.
exact: cvgD (fc i x) (IH x).
Qed.

Lemma prod_continuous (V : topologicalType) (f g : V -> R) :
  continuous f -> continuous g -> continuous (fun x => f x * g x).
Proof. by move=> fc gc x; exact: cvgM (fc x) (gc x). Qed.

(* The squared length of a row vector. *)
Definition len d (x : 'rV[R]_d) := \sum_k x 0 k * x 0 k.

Lemma len_ge0 d (x : 'rV[R]_d) : 0 <= len x.
Proof. by apply: sumr_ge0 => k _; rewrite -expr2 sqr_ge0. Qed.

Lemma len_continuous d : continuous (@len d).
Proof. by apply: sum_continuous => k; apply: prod_continuous; exact: coord_continuous. Qed.

Lemma coord_le_len d (x : 'rV[R]_d) k : `|x 0 k| <= 1 + len x.
Proof.
have sq i : 0 <= x 0 i * x 0 i by rewrite -expr2 sqr_ge0.
have le : `|x 0 k| ^+ 2 <= len x.
  by rewrite real_normK ?num_real // /len (bigD1 k) //= -expr2 ler_addl sumr_ge0.
have [h|/ltW h] := leP `|x 0 k| 1.
  by rewrite (le_trans h) // ler_addl sumr_ge0.
apply: le_trans (_ : `|x 0 k| ^+ 2 <= _); first by rewrite expr2 ler_pemulr.
by apply: le_trans le _; rewrite ler_addr ler01.
Qed.

(* A closed set of vectors that is not empty has a shortest one. *)
Lemma shortest_vector d (S : set 'rV[R]_d.+1) : closed S -> S !=set0 ->
  exists2 x, S x & forall y, S y -> len x <= len y.
Proof.
move=> Sc [x0 Sx0].
pose K := S `&` [set x | len x <= len x0].
have Kc : closed K.
  apply: closedI => //; rewrite -[X in closed X]/(@len _ @^-1` [set t | t <= len x0]).
  by apply: closed_comp (@closed_le _ _) => x _; exact: len_continuous.
have Kb : bounded_set K.
  exists (1 + len x0); split; first exact: num_real.
  move=> M lM x [_ xl] /=; have -> : `|x| = mx_norm x by [].
  rewrite mx_normrE; apply/bigmax_leP; split.
    by apply: le_trans (ltW lM); rewrite addr_ge0 ?ler01 ?len_ge0.
  move=> [i k] _ /=; rewrite ord1; apply: le_trans (ltW lM).
  by apply: le_trans (coord_le_len x k) _; rewrite ler_add2l.
have Kco : compact K by exact: bounded_closed_compact.
pose g (x : 'rV[R]_d.+1) : R := - len x.
have gc : continuous g by move=> x; apply: continuousN; exact: len_continuous.
have Ico : compact (g @` K) by apply: continuous_compact => //; exact: continuous_subspaceT.
have Kx0 : K x0 by split; [|exact: lexx].
have Isup : has_sup (g @` K).
  split; first by exists (g x0), x0.
  by exists 0 => _ [x _ <-]; rewrite oppr_le0 len_ge0.
have Icl : closed (g @` K) by apply: compact_closed => //; exact: Rhausdorff.
have [x [Sx xl] gx] : (g @` K) (sup (g @` K)).
  by apply: Icl; apply: closure_sup; [case: Isup | case: Isup].
exists x => // y Sy; have [yl|/ltW yl] := leP (len y) (len x0).
  rewrite -ler_opp2 -/(g y) -/(g x) gx; apply: sup_upper_bound => //.
  by exists y.
exact: le_trans yl.
Qed.

End Compactness.

Section Existence.
Variables (R : realType) (m n k : nat) (F : 'M[R]_(n, k)) (T : 'M[R]_(m, k)).

(* Storing the facts is a closed condition. *)
Lemma feasible_closed (V : topologicalType) s (A : V -> 'M[R]_(m, s)) (B : V -> 'M[R]_(n, s)) :
  (forall i j, continuous (fun x => A x i j)) ->
  (forall i j, continuous (fun x => B x i j)) ->
  closed [set x | feasible F T (A x) (B x)].
Proof.
move=> Ac Bc; pose P x := A x *m (B x)^T *m F.
have Pc i j : continuous (fun x => P x i j).
  apply: (@continuous_ext _ _ (fun x => \sum_l (\sum_t A x i t * B x l t) * F l j)) => [x|].
    rewrite /P mxE; apply: eq_bigr => l _; congr (_ * _).
    by rewrite mxE; apply: eq_bigr => t _; congr (_ * _); rewrite mxE.
  apply: sum_continuous => l; apply: prod_continuous; last by move=> x; exact: cvg_cst.
  by apply: sum_continuous => t; exact: prod_continuous.
rewrite (_ : mkset _ = \bigcap_(ij in [set: 'I_m * 'I_k])
    ((fun x => P x ij.1 ij.2) @^-1` [set t | t = T ij.1 ij.2])); last first.
  apply/seteqP; split=> [x fx [i j] _|x h] /=; first by rewrite /P fx.
  by apply/matrixP => i j; exact: (h (i, j)).
apply: closed_bigI => ij _; apply: closed_comp; last exact: closed_eq.
by move=> x _; exact: Pc.
Qed.

(* A pair of factors as one row vector; a coordinate in front keeps it from being empty. *)
Definition pack s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) : 'rV[R]_(1 + (m * s + n * s)) :=
  row_mx 0 (row_mx (mxvec A) (mxvec B)).
Definition write s (x : 'rV[R]_(1 + (m * s + n * s))) : 'M[R]_(m, s) :=
  vec_mx (lsubmx (rsubmx x)).
Definition read s (x : 'rV[R]_(1 + (m * s + n * s))) : 'M[R]_(n, s) :=
  vec_mx (rsubmx (rsubmx x)).

Lemma write_pack s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) : write (pack A B) = A.
Proof. by rewrite /write /pack row_mxKr row_mxKl mxvecK. Qed.

Lemma read_pack s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) : read (pack A B) = B.
Proof. by rewrite /read /pack !row_mxKr mxvecK. Qed.

Lemma len_vec p q (v : 'rV[R]_(p * q)) : len v = sqF (vec_mx v).
Proof.
rewrite sqFE pair_bigA /= /len (reindex _ (curry_mxvec_bij _ _)) /=.
by apply: eq_bigr => [[i j] _] /=; rewrite mxE expr2.
Qed.

Lemma len_factors s (x : 'rV[R]_(1 + (m * s + n * s))) :
  len x = x 0 (lshift _ 0) * x 0 (lshift _ 0) + cost (write x) (read x).
Proof.
rewrite /cost /write /read -!len_vec /len big_split_ord big_ord1 big_split_ord /=.
by congr (_ + (_ + _)); apply: eq_bigr => i _; rewrite !mxE.
Qed.

Lemma len_pack s (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)) : len (pack A B) = cost A B.
Proof.
by rewrite len_factors write_pack read_pack row_mxEl mxE mul0r add0r.
Qed.

(* Eq. 23: if some factors of rank s store the facts, A B^T F = T, then some of those have
   the least |A|^2 + |B|^2.  Nothing is asked of F, T and s beyond that. *)
Theorem minimiser_exists s :
  (exists (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)), feasible F T A B) ->
  exists (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)), feasible F T A B /\
    forall (A' : 'M[R]_(m, s)) (B' : 'M[R]_(n, s)), feasible F T A' B' -> cost A B <= cost A' B'.
Proof.
move=> [A1 [B1 f1]]; pose S := [set x | feasible F T (@write s x) (@read s x)].
have Sc : closed S.
  pose at_ c (x : 'rV[R]_(1 + (m * s + n * s))) : R := x 0 c.
  have atc c : continuous (at_ c) by exact: coord_continuous.
  apply: feasible_closed => i j.
    apply: continuous_ext (atc (rshift 1 (lshift _ (mxvec_index i j)))) => x.
    by rewrite /at_ !mxE.
  apply: continuous_ext (atc (rshift 1 (rshift _ (mxvec_index i j)))) => x.
  by rewrite /at_ !mxE.
have S0 : S !=set0 by exists (pack A1 B1); rewrite /S /= write_pack read_pack.
have [x Sx xmin] := shortest_vector Sc S0.
exists (write x), (read x); split=> // A' B' f'; rewrite -(len_pack A' B').
apply: le_trans (_ : len x <= _).
  by rewrite len_factors ler_addr -expr2 sqr_ge0.
by apply: xmin; rewrite /S /= write_pack read_pack.
Qed.

(* Facts whose changes have rank at most s fit into factors of rank s. *)
Lemma feasible_at_rank s : gram F \in unitmx -> (\rank T <= s)%N ->
  exists (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)), feasible F T A B.
Proof.
move=> G le; pose C := row_base T *m invmx (gram F) *m F^T.
exists (col_base T *m pid_mx (\rank T)), (C^T *m pid_mx (\rank T)).
rewrite /feasible trmx_mul trmxK tr_pid_mx.
have -> : col_base T *m pid_mx (\rank T) *m ((pid_mx (\rank T) : 'M_(s, _)) *m C) = edit F T.
  rewrite mulmxA -(mulmxA (col_base T)) pid_mx_id // pid_mx_1 mulmx1 /C.
  by rewrite 2!(mulmxA (col_base T)) mulmx_base.
exact: edit_feasible.
Qed.

(* Eq. 23 (P2), in full.  Let the features F of the stored prompts be linearly independent.
   Factors A (m x s) and B (n x s) that store the facts, A B^T F = T, and have the least
   |A|^2 + |B|^2 of all that do, exist exactly if s is at least the rank of the changes T;
   and their product is T (F^T F)^-1 F^T. *)
Theorem least_factors_exist s : gram F \in unitmx ->
  (\rank T <= s)%N <->
  exists (A : 'M[R]_(m, s)) (B : 'M[R]_(n, s)),
    [/\ feasible F T A B,
        forall (A' : 'M[R]_(m, s)) (B' : 'M[R]_(n, s)),
          feasible F T A' B' -> cost A B <= cost A' B' &
        A *m B^T = edit F T].
Proof.
move=> G; split=> [le|[A [B [f _ _]]]]; last exact: rank_needed f.
have [A [B [f least]]] := minimiser_exists (feasible_at_rank G le).
exists A, B; split=> //.
by have [] := minimisers_have_product_edit G f least.
Qed.

End Existence.
