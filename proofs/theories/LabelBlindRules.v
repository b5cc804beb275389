(* Which merges are label-blind (section 5): every rule of the package that needs
   no data, and one adapter trained on both hops.

   Two properties of a rule are enough.  It *treats labels alike* if permuting the
   output rows of all adapters permutes the rows of its result: no row is special.
   Or it *reads each row alone*: a row of its result depends on that row of the
   adapters.  Then "accuracy over all relabellings is at most 1/K" follows from
   Relabelling.no_composition_by_relabelling.

   A gauge "does not know the labels" if its factors are found from what permuting
   rows does not change, the Gram matrix D^T D: A = gA (D^T D), B = D gB (D^T D).
   The balanced gauge of the SVD D = U S V^T is of this form, as D^T D = V S^2 V^T
   gives V and S: A = V S^(1/2), B = D V S^(-1/2).  So are Arrow's prototypes. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers.
From LoRA Require Import MergeRules ManyFacts Relabelling.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- permuted rows ---------------------------------------------------- *)
Section RowPerm.
Variables (R : realFieldType) (n : nat).
Implicit Types p : 'S_n.

Lemma row_perm_mul p m r (A : 'M[R]_(n, m)) (B : 'M[R]_(m, r)) :
  row_perm p (A *m B) = row_perm p A *m B.
Proof. by rewrite !row_permE mulmxA. Qed.

Lemma row_permD p m (A B : 'M[R]_(n, m)) : row_perm p (A + B) = row_perm p A + row_perm p B.
Proof. by apply/matrixP => i j; rewrite !mxE. Qed.

Lemma row_permB p m (A B : 'M[R]_(n, m)) : row_perm p (A - B) = row_perm p A - row_perm p B.
Proof. by apply/matrixP => i j; rewrite !mxE. Qed.

Lemma row_permZ p m a (A : 'M[R]_(n, m)) : row_perm p (a *: A) = a *: row_perm p A.
Proof. by apply/matrixP => i j; rewrite !mxE. Qed.

Lemma row_perm_sum p m k (F : 'I_k -> 'M[R]_(n, m)) :
  row_perm p (\sum_l F l) = \sum_l row_perm p (F l).
Proof.
by apply/matrixP => i j; rewrite mxE !summxE; apply: eq_bigr => l _; rewrite mxE.
Qed.

Lemma row_perm_gram p m r (A : 'M[R]_(n, m)) (B : 'M[R]_(n, r)) :
  (row_perm p A)^T *m row_perm p B = A^T *m B.
Proof.
rewrite !row_permE trmx_mul mulmxA -(mulmxA A^T) tr_perm_mx -perm_mxM mulVg.
by rewrite perm_mx1 mulmx1.
Qed.

Lemma row_perm_edit p m q (F : 'M[R]_(m, q)) (T : 'M[R]_(n, q)) :
  row_perm p (edit F T) = edit F (row_perm p T).
Proof. by rewrite /edit !row_perm_mul. Qed.

End RowPerm.

(* ---- rules ------------------------------------------------------------ *)
Section Rules.
Variables (R : realFieldType) (n m k : nat).

(* k adapters, and a rule: the shift of the output on features f *)
Definition library := {ffun 'I_k -> 'M[R]_(n, m)}.
Definition rule := library -> 'cV[R]_m -> 'cV[R]_n.
Implicit Types (D : library) (f : 'cV[R]_m) (p : 'S_n) (w : 'I_k -> R) (l : 'I_k).

Lemma library_ext D D' : (forall l, D l = D' l) -> D = D'.
Proof. exact: (proj1 (ffunP _ _)). Qed.

Definition permuted p D : library := [ffun l => row_perm p (D l)].

Definition treats_labels_alike (M : rule) :=
  forall p D f, M (permuted p D) f = row_perm p (M D f).

Definition sq (A : 'M[R]_(n, m)) : 'M[R]_m := A^T *m A.

(* Besides the row it may see the Gram matrices, by which a gauge is found. *)
Definition reads_each_row_alone (M : rule) := forall D D' e f,
  (forall l j, D l e j = D' l e j) -> (forall l, sq (D l) = sq (D' l)) ->
  M D f e 0 = M D' f e 0.

Lemma sq_permuted p D l : sq (permuted p D l) = sq (D l).
Proof. by rewrite ffunE /sq row_perm_gram. Qed.

(* CAT with any fixed weights (eq. 26): the sum, the mean, LoRI by concatenation. *)
Definition sum_rule w : rule := fun D f => (\sum_l w l *: D l) *m f.

Lemma permuted_sum p D w :
  \sum_l w l *: permuted p D l = row_perm p (\sum_l w l *: D l).
Proof. by rewrite row_perm_sum; apply: eq_bigr => l _; rewrite ffunE row_permZ. Qed.

Theorem sum_alike w : treats_labels_alike (sum_rule w).
Proof. by move=> p D f; rewrite /sum_rule permuted_sum row_perm_mul. Qed.

(* The sum cut to rank r: S V_r V_r^T, V_r the top eigenvectors of S^T S. *)
Definition truncated_sum_rule w (cut : 'M[R]_m -> 'M[R]_m) : rule := fun D f =>
  let S := \sum_l w l *: D l in S *m cut (sq S) *m f.

Theorem truncated_sum_alike w cut : treats_labels_alike (truncated_sum_rule w cut).
Proof.
move=> p D f; rewrite /truncated_sum_rule permuted_sum /sq row_perm_gram.
by rewrite !row_perm_mul.
Qed.

(* Factors in a gauge that does not know the labels; each adapter may have its own
   (LoRI's frozen random reads: gA l constant). *)
Variable r : nat.
Variables (gB gA : 'I_k -> 'M[R]_m -> 'M[R]_(m, r)).
Definition writes D l : 'M[R]_(n, r) := D l *m gB l (sq (D l)).
Definition reads D l : 'M[R]_(m, r) := gA l (sq (D l)).

Lemma writes_permuted p D l : writes (permuted p D) l = row_perm p (writes D l).
Proof. by rewrite /writes sq_permuted row_perm_mul ffunE. Qed.

Lemma reads_permuted p D l : reads (permuted p D) l = reads D l.
Proof. by rewrite /reads sq_permuted. Qed.

Lemma permuted_writes p D w :
  \sum_l w l *: writes (permuted p D) l = row_perm p (\sum_l w l *: writes D l).
Proof.
by rewrite row_perm_sum; apply: eq_bigr => l _; rewrite writes_permuted row_permZ.
Qed.

Lemma permuted_reads p D w :
  \sum_l w l *: reads (permuted p D) l = \sum_l w l *: reads D l.
Proof. by apply: eq_bigr => l _; rewrite reads_permuted. Qed.

(* The balanced gauge of the SVD A = U S V^T is such a gauge: with Q^2 = S it writes
   U Q = A (V Q^-1) and reads V Q, and V, S are those of the Gram matrix V S^2 V^T.
   Permuted rows permute U and leave S and V. *)
Lemma svd_gauge (U : 'M[R]_(n, r)) (S Q : 'M[R]_r) (V : 'M[R]_(m, r)) :
  U^T *m U = 1%:M -> V^T *m V = 1%:M -> Q *m Q = S -> Q \in unitmx ->
  let A := U *m S *m V^T in
  [/\ U *m Q = A *m (V *m invmx Q),
      sq A = V *m (S^T *m S) *m V^T &
      forall p, row_perm p A = row_perm p U *m S *m V^T /\
                (row_perm p U)^T *m row_perm p U = 1%:M].
Proof.
move=> UU VV QQ Qu A; split.
- rewrite /A -!mulmxA (mulmxA V^T) VV mul1mx -QQ -!mulmxA mulmxV //.
  by rewrite mulmx1.
- rewrite /sq /A !trmx_mul trmxK !mulmxA; congr (_ *m _).
  by rewrite -!mulmxA (mulmxA U^T) UU mul1mx.
by move=> p; rewrite row_perm_gram !row_perm_mul.
Qed.

(* Linear merging (eq. 27; w and w' differ in PEFT's variant). *)
Definition linear_rule w w' : rule := fun D f =>
  (\sum_l w l *: writes D l) *m (\sum_l w' l *: reads D l)^T *m f.

Theorem linear_alike w w' : treats_labels_alike (linear_rule w w').
Proof. by move=> p D f; rewrite /linear_rule permuted_writes permuted_reads !row_perm_mul. Qed.

(* Arrow: |<prototype, f>| for each adapter, turned into weights by any function
   (softmax at any temperature, the k largest only, a hard choice). *)
Variables (prototype : 'M[R]_m -> 'cV[R]_m) (weigh : {ffun 'I_k -> R} -> 'I_k -> R).
Definition arrow_weight D f : 'I_k -> R :=
  weigh [ffun l => `|dotF (prototype (sq (D l))) f|].

Lemma arrow_weight_permuted p D f l : arrow_weight (permuted p D) f l = arrow_weight D f l.
Proof.
rewrite /arrow_weight; congr (weigh _ _).
by apply/ffunP => l'; rewrite [LHS]ffunE [RHS]ffunE sq_permuted.
Qed.

(* products (PEFT) *)
Definition arrow_products_rule : rule := fun D f =>
  (\sum_l arrow_weight D f l *: D l) *m f.

Theorem arrow_products_alike : treats_labels_alike arrow_products_rule.
Proof.
move=> p D f; rewrite /arrow_products_rule row_perm_mul -permuted_sum.
by under eq_bigr do rewrite arrow_weight_permuted.
Qed.

(* factors (eq. 28), with all cross terms *)
Definition arrow_factors_rule : rule := fun D f =>
  (\sum_l arrow_weight D f l *: writes D l) *m
  (\sum_l arrow_weight D f l *: reads D l)^T *m f.

Theorem arrow_factors_alike : treats_labels_alike arrow_factors_rule.
Proof.
move=> p D f; rewrite /arrow_factors_rule !row_perm_mul -permuted_writes.
rewrite -(permuted_reads p D).
under eq_bigr do rewrite arrow_weight_permuted.
by under [X in _ *m X^T *m _ = _]eq_bigr do rewrite arrow_weight_permuted.
Qed.

(* Trimming: of a matrix, the entries with fewer than c larger ones in magnitude.
   Tied entries all stay: a tie broken by position would read labels. *)
Definition larger q (A : 'M[R]_(n, q)) (x : R) : nat :=
  #|[set ij : 'I_n * 'I_q | `|x| < `|A ij.1 ij.2|]|.
Definition trim q c (A : 'M[R]_(n, q)) : 'M[R]_(n, q) :=
  \matrix_(e, j) (if (larger A (A e j) < c)%N then A e j else 0).

Lemma larger_permuted q p (A : 'M[R]_(n, q)) x : larger (row_perm p A) x = larger A x.
Proof.
pose g (ij : 'I_n * 'I_q) := (p ij.1, ij.2).
have gI : injective g by move=> [i j] [i' j'] [/perm_inj -> ->].
rewrite /larger -(card_imset _ gI); congr #|pred_of_set _|.
apply/setP => -[i j]; rewrite inE /=; apply/imsetP/idP => [[[i' j']]|lt].
  by rewrite inE /= mxE => lt [-> ->].
by exists ((p^-1)%g i, j); rewrite ?inE /= ?mxE /g ?permKV.
Qed.

Lemma trim_permuted q p c (A : 'M[R]_(n, q)) : trim c (row_perm p A) = row_perm p (trim c A).
Proof. by apply/matrixP => e j; rewrite !mxE larger_permuted. Qed.

(* TIES and magnitude pruning: trim, then join the entries by any function
   (the elected sign and the mean of those that agree; a weighted sum). *)
Variable join : {ffun 'I_k -> R} -> R.
Definition joined q (A : 'I_k -> 'M[R]_(n, q)) : 'M[R]_(n, q) :=
  \matrix_(e, j) join [ffun l => A l e j].

Lemma joined_permuted q p (A A' : 'I_k -> 'M[R]_(n, q)) :
  (forall l, A' l = row_perm p (A l)) -> joined A' = row_perm p (joined A).
Proof.
move=> h; apply/matrixP => e j; rewrite !mxE; congr (join _).
by apply/ffunP => l; rewrite !ffunE h mxE.
Qed.

Definition trim_and_join_rule c : rule := fun D f => joined (fun l => trim c (D l)) *m f.

Theorem trim_and_join_alike c : treats_labels_alike (trim_and_join_rule c).
Proof.
move=> p D f; rewrite /trim_and_join_rule row_perm_mul; congr (_ *m _).
by apply: joined_permuted => l; rewrite ffunE trim_permuted.
Qed.

(* The same on the write factors, with any merge of the read factors (PEFT "ties",
   LoRI with a mask). *)
Variable joinA : {ffun 'I_k -> 'M[R]_(m, r)} -> 'M[R]_(m, r).
Definition trim_factors_rule c : rule := fun D f =>
  joined (fun l => trim c (writes D l)) *m (joinA [ffun l => reads D l])^T *m f.

Theorem trim_factors_alike c : treats_labels_alike (trim_factors_rule c).
Proof.
move=> p D f; rewrite /trim_factors_rule !row_perm_mul; congr (_ *m _^T *m _).
  by apply: joined_permuted => l; rewrite writes_permuted trim_permuted.
congr (joinA _).
by apply/ffunP => l; rewrite [LHS]ffunE [RHS]ffunE reads_permuted.
Qed.

(* LoRI with a mask, by concatenation: a sum of products whose write factors are trimmed. *)
Definition trimmed_products_rule c w : rule := fun D f =>
  (\sum_l w l *: (trim c (writes D l) *m (reads D l)^T)) *m f.

Theorem trimmed_products_alike c w : treats_labels_alike (trimmed_products_rule c w).
Proof.
move=> p D f; rewrite /trimmed_products_rule row_perm_mul row_perm_sum; congr (_ *m _).
apply: eq_bigr => l _; rewrite row_permZ row_perm_mul.
by rewrite writes_permuted trim_permuted reads_permuted.
Qed.

(* KnOTS: a shared basis U = sum_l D_l h_l of output directions, found from the Gram
   matrices of the adapters, and any merge of the coordinates U^T D_l. *)
Definition grams D : {ffun 'I_k * 'I_k -> 'M[R]_m} := [ffun ll => (D ll.1)^T *m D ll.2].
Variables (h : {ffun 'I_k * 'I_k -> 'M[R]_m} -> 'I_k -> 'M[R]_(m, r))
          (merge : {ffun 'I_k -> 'M[R]_(r, m)} -> 'M[R]_(r, m)).
Definition basis D : 'M[R]_(n, r) := \sum_l D l *m h (grams D) l.
Definition shared_basis_rule : rule := fun D f =>
  basis D *m merge [ffun l => (basis D)^T *m D l] *m f.

Lemma grams_permuted p D : grams (permuted p D) = grams D.
Proof. by apply/ffunP => ll; rewrite !ffunE row_perm_gram. Qed.

Theorem shared_basis_alike : treats_labels_alike shared_basis_rule.
Proof.
move=> p D f; have bE : basis (permuted p D) = row_perm p (basis D).
  rewrite /basis row_perm_sum grams_permuted; apply: eq_bigr => l _.
  by rewrite ffunE row_perm_mul.
rewrite /shared_basis_rule bE !row_perm_mul; congr (_ *m merge _ *m _).
by apply/ffunP => l; rewrite [LHS]ffunE [RHS]ffunE ffunE row_perm_gram.
Qed.

(* DARE and DARE-TIES with a fixed mask: entry by entry, so row by row. *)
Variables (mask : 'I_k -> 'M[R]_(n, m)) (joinE : 'I_n -> 'I_m -> {ffun 'I_k -> R} -> R).
Definition masked_rule : rule := fun D f =>
  (\matrix_(e, j) joinE e j [ffun l => mask l e j * D l e j]) *m f.

Theorem masked_reads_each_row_alone : reads_each_row_alone masked_rule.
Proof.
move=> D D' e f same _; rewrite !mxE; apply: eq_bigr => j _; rewrite !mxE.
congr (joinE _ _ _ * _); apply/ffunP => l; by rewrite !ffunE same.
Qed.

(* The same on the factors (PEFT "dare_linear" and "dare_ties"): write factors under masks
   that do not depend on the adapters, read factors under any merge. *)
Variables (maskB : 'I_k -> 'I_n -> 'I_r -> R) (joinB : 'I_n -> 'I_r -> {ffun 'I_k -> R} -> R).
Definition masked_factors_rule : rule := fun D f =>
  (\matrix_(e, j) joinB e j [ffun l => maskB l e j * writes D l e j]) *m
  ((joinA [ffun l => reads D l])^T *m f).

Theorem masked_factors_read_each_row_alone : reads_each_row_alone masked_factors_rule.
Proof.
move=> D D' e f same gram; rewrite ![masked_factors_rule _ _ _ _]mxE; apply: eq_bigr => j _.
have -> : [ffun l => reads D l] = [ffun l => reads D' l].
  by apply/ffunP => l; rewrite !ffunE /reads gram.
congr (_ * _); rewrite !mxE; congr (joinB _ _ _); apply/ffunP => l; rewrite !ffunE.
by congr (_ * _); rewrite /writes gram !mxE; apply: eq_bigr => c _; rewrite same.
Qed.

End Rules.

(* ---- the adapters of section 5 ------------------------------------------ *)
Section Relabelled.
Variables (R : realFieldType) (n m K : nat) (y z : 'I_K -> 'I_n).
Hypotheses (yI : injective y) (zy : forall i j, z i != y j).
Implicit Types s : 'S_K.

Definition words (q : 'I_K -> 'I_n) : 'M[R]_(n, K) := \matrix_(e, j) (e == q j)%:R.

(* The permutation of labels that s makes: y_(s j) becomes y_j, others stay. *)
Definition relabel_fun s (e : 'I_n) : 'I_n :=
  if [pick i | y i == e] is Some i then y ((s^-1)%g i) else e.

Lemma relabel_fun_y s i : relabel_fun s (y i) = y ((s^-1)%g i).
Proof. by rewrite /relabel_fun; case: pickP => [j /eqP /yI ->|/(_ i)]; rewrite ?eqxx. Qed.

Lemma relabel_fun_other s e : (forall i, e != y i) -> relabel_fun s e = e.
Proof.
move=> ne; rewrite /relabel_fun; case: pickP => // i /eqP ye.
by have := ne i; rewrite -ye eqxx.
Qed.

Lemma relabel_inj s : injective (relabel_fun s).
Proof.
apply: (can_inj (g := relabel_fun (s^-1)%g)) => e.
have [i /eqP <-|ne] := pickP (fun i => y i == e).
  by rewrite !relabel_fun_y invgK permKV.
by rewrite !relabel_fun_other // => i; rewrite eq_sym ne.
Qed.

Definition relabel s : 'S_n := perm (@relabel_inj s).

Lemma relabel_z s j : relabel s (z j) = z j.
Proof. by rewrite permE relabel_fun_other. Qed.

Lemma words_relabel s : words (y \o s) = row_perm (relabel s) (words y).
Proof.
apply/matrixP => e j; rewrite !mxE permE /=; congr (_%:R).
have [i /eqP <-|ne] := pickP (fun i => y i == e).
  by rewrite relabel_fun_y !(inj_eq yI) -[in RHS](inj_eq (@perm_inj _ s)) permKV.
have ne' i : e != y i by rewrite eq_sym ne.
by rewrite relabel_fun_other // !(negbTE (ne' _)).
Qed.

Lemma fixed_by_relabel s q (A : 'M[R]_(n, q)) :
  (forall i j, A (y i) j = 0) -> row_perm (relabel s) A = A.
Proof.
move=> A0; apply/matrixP => e j; rewrite mxE permE.
have [i /eqP <-|ne] := pickP (fun i => y i == e); first by rewrite relabel_fun_y !A0.
by rewrite relabel_fun_other // => i; rewrite eq_sym ne.
Qed.

(* The base writes no y on the edited prompts: known facts whose old answers are no
   y's, and fresh facts, where it writes nothing.  F1, F2: the edited prompts. *)
Variables (W : 'M[R]_(n, m)) (F1 F2 : 'M[R]_(m, K)).
Hypothesis base1 : forall i j, (W *m F1) (y i) j = 0.
Hypothesis base2 : forall i j, (W *m F2) (y i) j = 0.

Definition hop1 s : 'M[R]_(n, m) := edit F1 (words (y \o s) - W *m F1).
Definition hop2 : 'M[R]_(n, m) := edit F2 (words z - W *m F2).
Definition joint s : 'M[R]_(n, m) :=
  edit (row_mx F1 F2) (row_mx (words (y \o s) - W *m F1) (words z - W *m F2)).

Lemma words_z_no_y i j : words z (y i) j = 0.
Proof. by rewrite mxE eq_sym (negbTE (zy _ _)). Qed.

Lemma words_y1 : words (y \o (1%g : 'S_K)) = words y.
Proof. by apply/matrixP => e j; rewrite !mxE /= perm1. Qed.

Lemma target1_relabel s :
  words (y \o s) - W *m F1 = row_perm (relabel s) (words (y \o (1%g : 'S_K)) - W *m F1).
Proof. by rewrite row_permB words_y1 -words_relabel (fixed_by_relabel _ base1). Qed.

Lemma target2_relabel s : words z - W *m F2 = row_perm (relabel s) (words z - W *m F2).
Proof.
rewrite fixed_by_relabel // => i j; rewrite [LHS]mxE words_z_no_y add0r.
by rewrite [LHS]mxE base2 oppr0.
Qed.

(* Adapter 1 for the relabelling s is adapter 1 for the identity with y-rows permuted. *)
Theorem hop1_relabelled s : hop1 s = row_perm (relabel s) (hop1 1%g).
Proof. by rewrite /hop1 target1_relabel row_perm_edit. Qed.

Theorem hop2_relabelled s : hop2 = row_perm (relabel s) hop2.
Proof. by rewrite /hop2 row_perm_edit -target2_relabel. Qed.

(* One adapter trained on both hops together (the paper's "Mixed Two-Hop Expert"). *)
Theorem joint_relabelled s : joint s = row_perm (relabel s) (joint 1%g).
Proof.
rewrite /joint row_perm_edit; congr (edit _ _); rewrite target1_relabel.
rewrite [in LHS](target2_relabel s).
by apply/matrixP => e j; rewrite !mxE; case: split => j'; rewrite !mxE.
Qed.

(* Any library whose adapters relabelling permutes, or leaves as they are. *)
Definition relabelled k (D : 'S_K -> library R n m k) :=
  forall s l, D s l = row_perm (relabel s) (D 1%g l).

Definition merged k (M : rule R n m k) (D : 'S_K -> library R n m k)
    (f : 'I_K -> 'cV[R]_m) (s : 'S_K) (i : 'I_K) : 'cV[R]_n :=
  W *m f i + M (D s) (f i).

(* Section 5: rules that treat labels alike are label-blind. Relabelling permutes the
   y-rows of all adapters at once, so it permutes those of the result and no z-row. *)
Theorem alike_is_label_blind k (M : rule R n m k) D f :
  treats_labels_alike M -> relabelled D -> label_blind z (merged M D f).
Proof.
move=> alike rel s t i j.
have E u : M (D u) (f i) = row_perm (relabel u) (M (D 1%g) (f i)).
  rewrite -alike; have -> : D u = permuted (relabel u) (D 1%g); last by [].
  by apply: library_ext => l; rewrite [RHS]ffunE rel.
by rewrite /merged !addcE (E s) (E t) ![row_perm _ _ _ _]mxE !relabel_z.
Qed.

(* Section 5: rules that read each row alone are label-blind. No z-row of an adapter
   depends on the relabelling. *)
Theorem rowwise_is_label_blind k (M : rule R n m k) D f :
  reads_each_row_alone M -> relabelled D -> label_blind z (merged M D f).
Proof.
move=> alone rel s t i j; rewrite /merged !addcE; congr (_ + _); apply: alone => l.
  by move=> c; rewrite (rel s) (rel t) ![row_perm _ _ _ _]mxE !relabel_z.
by rewrite (rel s) (rel t) /sq !row_perm_gram.
Qed.

(* The libraries that are measured: two hops apart, both in one, all three. *)
Definition two_hops (s : 'S_K) : library R n m 2 :=
  [ffun l : 'I_2 => if val l == 0%N then hop1 s else hop2].
Definition one_adapter (s : 'S_K) : library R n m 1 := [ffun => joint s].
Definition three_adapters (s : 'S_K) : library R n m 3 :=
  [ffun l : 'I_3 => if val l == 0%N then hop1 s else if val l == 1%N then hop2 else joint s].

Theorem two_hops_relabelled : relabelled two_hops.
Proof. by move=> s l; rewrite !ffunE; case: ifP => _; [apply: hop1_relabelled|apply: hop2_relabelled]. Qed.

Theorem one_adapter_relabelled : relabelled one_adapter.
Proof. by move=> s l; rewrite !ffunE; apply: joint_relabelled. Qed.

Theorem three_adapters_relabelled : relabelled three_adapters.
Proof.
move=> s l; rewrite !ffunE; case: ifP => _; first exact: hop1_relabelled.
by case: ifP => _; [apply: hop2_relabelled|apply: joint_relabelled].
Qed.

(* Every rule of this file, at any of its settings. *)
Variant listed k : rule R n m k -> Prop :=
| Sum w : listed (sum_rule w)
| TruncatedSum w cut : listed (truncated_sum_rule w cut)
| Linear r (gB gA : 'I_k -> 'M[R]_m -> 'M[R]_(m, r)) w w' : listed (linear_rule gB gA w w')
| ArrowProducts prototype weigh : listed (arrow_products_rule prototype weigh)
| ArrowFactors r (gB gA : 'I_k -> 'M[R]_m -> 'M[R]_(m, r)) prototype weigh :
    listed (arrow_factors_rule gB gA prototype weigh)
| TrimAndJoin join c : listed (trim_and_join_rule join c)
| TrimFactors r (gB gA : 'I_k -> 'M[R]_m -> 'M[R]_(m, r)) join joinA c :
    listed (trim_factors_rule gB gA join joinA c)
| TrimmedProducts r (gB gA : 'I_k -> 'M[R]_m -> 'M[R]_(m, r)) c w :
    listed (trimmed_products_rule gB gA c w)
| SharedBasis r h (merge : {ffun 'I_k -> 'M[R]_(r, m)} -> 'M[R]_(r, m)) :
    listed (shared_basis_rule h merge)
| Masked mask joinE : listed (masked_rule mask joinE)
| MaskedFactors r (gB gA : 'I_k -> 'M[R]_m -> 'M[R]_(m, r)) joinA maskB joinB :
    listed (masked_factors_rule gB gA joinA maskB joinB).

(* Section 5: every rule of the list is label-blind. *)
Theorem listed_rules_are_label_blind k (M : rule R n m k) D f :
  listed M -> relabelled D -> label_blind z (merged M D f).
Proof.
case=> [w|w c|r gB gA w w'|pt wg|r gB gA pt wg|jn c|r gB gA jn jA c|r gB gA c w|r h mg|mk jn|r gB gA jA mk jn] rel.
- exact: alike_is_label_blind (sum_alike w) rel.
- exact: alike_is_label_blind (truncated_sum_alike w c) rel.
- exact: alike_is_label_blind (linear_alike gB gA w w') rel.
- exact: alike_is_label_blind (arrow_products_alike pt wg) rel.
- exact: alike_is_label_blind (arrow_factors_alike gB gA pt wg) rel.
- exact: alike_is_label_blind (trim_and_join_alike jn c) rel.
- exact: alike_is_label_blind (trim_factors_alike gB gA jn jA c) rel.
- exact: alike_is_label_blind (trimmed_products_alike gB gA c w) rel.
- exact: alike_is_label_blind (shared_basis_alike h mg) rel.
- exact: rowwise_is_label_blind (@masked_reads_each_row_alone _ _ _ _ mk jn) rel.
exact: rowwise_is_label_blind (@masked_factors_read_each_row_alone _ _ _ _ _ gB gA jA mk jn) rel.
Qed.

(* Section 5, in full: no rule of the list composes two adapters, one adapter on
   both hops, or all three, beyond chance. *)
Theorem listed_rules_do_not_compose (f : 'I_K -> 'cV[R]_m) :
  injective z ->
  [/\ forall M, listed M -> mean_accuracy z (merged M two_hops f) <= K%:R^-1,
      forall M, listed M -> mean_accuracy z (merged M one_adapter f) <= K%:R^-1 &
      forall M, listed M -> mean_accuracy z (merged M three_adapters f) <= K%:R^-1].
Proof.
move=> zI; split=> M lM; apply: no_composition_by_relabelling => //;
  apply: listed_rules_are_label_blind => //.
- exact: two_hops_relabelled.
- exact: one_adapter_relabelled.
exact: three_adapters_relabelled.
Qed.

End Relabelled.
