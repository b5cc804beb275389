(* L hops in a stack (section 11): composition in as many steps as there are layers.

   Hop l's adapter lies above hop l-1's and reads, at the position of its own relation, what
   that one wrote at the positions before.  Everything is a hit at the right key and a miss
   at all others, layer by layer:

   - before its own relation hop l says nothing of which answer is right (the light cone:
     a signal travels one position a hop);
   - at its own relation, any positive weights below make the hit exceed the miss;
   - so the plain sum is right on all hops for *every* relabelling, whatever the positive
     weights of the lower adapters are, once the last weight exceeds (what any rival has
     from elsewhere) / (what a unit of it gives the right answer);
   - and where one hop reads nothing of the hop before it, as where it lies no higher, all
     answers of the last hop tie. *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers.
From LoRA Require Import MergeRules ManyFacts Relabelling LabelBlindRules Survival TwoLayers.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section ManyLayers.
Variables (R : realFieldType) (n d m K L : nat).
Hypothesis K2 : (1 < K)%N.

(* L hops, numbered from 0; y l are the answers of hop l, and hop l + 1 is asked about
   them.  Adapter 0 stores (x_i, R_0) -> y_0 (s i), adapter l + 1 (y_l j, R_(l+1)) ->
   y_(l+1) j, so the right answers to (x_i, R_0, .. R_l) are y_0 (s i), .. y_l (s i).
   Relation R_l stands at position l + 1. *)
Variable y : nat -> 'I_K -> 'I_n.
Hypothesis yI : forall l, (l < L)%N -> injective (y l).
Variables (E : 'M[R]_(d, n)) (V : nat -> 'M[R]_d) (phi : nat -> 'cV[R]_d -> 'cV[R]_m).
Variables (T : nat -> 'M[R]_(n, K)) (al : nat -> R).
Variables (first : 'I_K -> 'cV[R]_d) (higher : nat -> 'I_K -> 'cV[R]_d).
Implicit Types (s : 'S_K) (i j : 'I_K) (l k p r : nat).

(* The hidden state of the prompt for which adapter l stores y_l j, in its own layer. *)
Definition key s l j : 'cV[R]_d := if l is k.+1 then higher k j else first ((s^-1)%g j).
Definition keys s l : 'M[R]_(m, K) := \matrix_(r, j) phi l (key s l j) r 0.

(* In adapter l's layer the state at position p is what the adapter below wrote at earlier
   ones, attended to with weights att (uniform, softmax or any other; they may depend on
   the question) and through the values V, and all else, [seen]. *)
Variables (att : 'S_K -> 'I_K -> nat -> nat -> nat -> R) (seen : 'S_K -> 'I_K -> nat -> nat -> 'cV[R]_d).
Fixpoint state s i l p : 'cV[R]_d := seen s i l p +
  if l is k.+1 then \sum_(r < p) att s i l p r *: (V l *m (E *m
    (al k *: (edit (keys s k) (T k) *m phi k (state s i k r))))) else 0.
(* What a unit of adapter l writes. *)
Definition written s i l p : 'cV[R]_n := edit (keys s l) (T l) *m phi l (state s i l p).

(* Adapters write one-hot answers, whatever they write to other labels. *)
Hypothesis answers : forall l j j', (l < L)%N -> T l (y l j) j' = (j == j')%:R.
(* Tied: through its values hop l + 1 finds y_l j in the key of (y_l j, R_(l+1)), and no
   other embedding.  With d -> infinity the words V .. V e are orthonormal. *)
Hypothesis tied : forall l j e, (l.+1 < L)%N ->
  dotF (higher l j) (V l.+1 *m (E *m oh R e)) = (e == y l j)%:R.
(* All else overlaps with every key alike, but for hop 0, which sees x_i itself. *)
Variables (c0 : 'S_K -> 'I_K -> nat -> nat -> R) (x : 'S_K -> 'I_K -> nat -> R).
Hypothesis alike : forall s i l p j, (l.+1 < L)%N ->
  dotF (higher l j) (seen s i l.+1 p) = c0 s i l.+1 p.
Hypothesis start : forall s i p j,
  dotF (first j) (seen s i 0%N p) = c0 s i 0%N p + (j == i)%:R * x s i p.

Variables (q q0 : nat -> R) (kap : R -> R -> R -> R).
Hypothesis key_key : forall s l j j', (l < L)%N ->
  dotF (key s l j) (key s l j') = if j == j' then q l else q0 l.
Hypothesis kernel_keys : forall s l j j', (l < L)%N ->
  dotF (phi l (key s l j)) (phi l (key s l j')) = kap (q l) (q l) (dotF (key s l j) (key s l j')).
Hypothesis kernel_state : forall s i l p j, (l < L)%N ->
  dotF (phi l (key s l j)) (phi l (state s i l p)) =
  kap (q l) (sqF (state s i l p)) (dotF (key s l j) (state s i l p)).
Hypothesis kap0 : forall a b c, 0 <= kap a b c.
Hypothesis kap_lt : forall a b c c', 0 < b -> c ^+ 2 <= a * b -> c' ^+ 2 <= a * b ->
  c < c' -> kap a b c < kap a b c'.
Hypothesis state0 : forall s i l p, (l < L)%N -> 0 < sqF (state s i l p).
Hypothesis gu : forall s l, (l < L)%N -> gram (keys s l) \in unitmx.
Hypotheses (q0_0 : forall l, (l < L)%N -> 0 <= q0 l) (q0q : forall l, (l < L)%N -> q0 l < q l).

Notation kg l := (kap (q l) (q l) (q l)).
Notation kh l := (kap (q l) (q l) (q0 l)).

Lemma kh_lt_kg l : (l < L)%N -> kh l < kg l.
Proof.
move=> lL; have [c0q cq] := (q0_0 lL, q0q lL); have qp : 0 < q l by apply: le_lt_trans cq.
by apply: kap_lt; rewrite // -expr2 ?ler_sqr ?nnegrE // ltW.
Qed.

Lemma keys_gram s l j j' : (l < L)%N -> gram (keys s l) j j' = if j == j' then kg l else kh l.
Proof.
move=> lL; have -> : gram (keys s l) j j' = dotF (phi l (key s l j)) (phi l (key s l j')).
  by rewrite dotF_col /gram mxE; apply: eq_bigr => r _; rewrite !mxE.
by rewrite kernel_keys // key_key //; case: eqP.
Qed.

(* The overlap of the state with every wrong key, and by how much that with the right one
   is more. *)
Fixpoint overlap s i l p : R * R :=
  if l is k.+1 then
    let at_key r c := kap (q k) (sqF (state s i k r)) c in
    let hit r := at_key r ((overlap s i k r).1 + (overlap s i k r).2) in
    let miss r := at_key r (overlap s i k r).1 in
    (c0 s i l p + \sum_(r < p) att s i l p r * (al k * other_part K (kg k) (kh k) (hit r) (miss r)),
     \sum_(r < p) att s i l p r * (al k * gap (kg k) (kh k) (hit r) (miss r)))
  else (c0 s i 0%N p, x s i p).

Definition hit s i l p : R :=
  kap (q l) (sqF (state s i l p)) ((overlap s i l p).1 + (overlap s i l p).2).
Definition miss s i l p : R := kap (q l) (sqF (state s i l p)) (overlap s i l p).1.
(* What a unit of adapter l gives its right answer, and every other one. *)
Definition own s i l p : R := own_part K (kg l) (kh l) (hit s i l p) (miss s i l p).
Definition other s i l p : R := other_part K (kg l) (kh l) (hit s i l p) (miss s i l p).

Lemma reads l j (w : 'cV[R]_n) : (l.+1 < L)%N ->
  dotF (higher l j) (V l.+1 *m (E *m w)) = w (y l j) 0.
Proof.
move=> lL; have -> : w = \sum_e w e 0 *: oh R e.
  apply/colP => e; rewrite summxE (bigD1 e) //= !mxE !eqxx mulr1 big1 ?addr0 // => e' /negbTE ne.
  by rewrite !mxE [e == _]eq_sym ne mulr0.
rewrite !mulmx_sumr dotFC /dotF mulmx_suml linear_sum summxE /=; apply: eq_bigr => e _.
rewrite -!scalemxAr -scalemxAl mxtraceZ mxE -/(dotF _ _) dotFC tied //.
by rewrite mxE eqxx andbT eq_sym.
Qed.

Let two_valued s i l p := forall j,
  dotF (key s l j) (state s i l p) = (overlap s i l p).1 + (j == s i)%:R * (overlap s i l p).2.

Let keys_state s i l p : (l < L)%N -> two_valued s i l p ->
  (keys s l)^T *m phi l (state s i l p) = \col_j (if j == s i then hit s i l p else miss s i l p).
Proof.
move=> lL two; apply/colP => j; rewrite [RHS]mxE.
have -> : ((keys s l)^T *m phi l (state s i l p)) j 0 = dotF (phi l (key s l j)) (phi l (state s i l p)).
  by rewrite dotF_col mxE; apply: eq_bigr => r _; rewrite !mxE.
by rewrite kernel_state // two; case: eqP => _; rewrite /hit /miss ?mul1r ?mul0r ?addr0.
Qed.

Let written_y s i l p j : (l < L)%N -> two_valued s i l p ->
  written s i l p (y l j) 0 = if j == s i then own s i l p else other s i l p.
Proof.
move=> lL two; rewrite /written /edit -!mulmxA keys_state //.
rewrite (coefficients (hit s i l p) (miss s i l p) (kap0 _ _ _) (kh_lt_kg lL) (s i) (gu s lL)); last first.
  by move=> *; apply: keys_gram.
rewrite mxE (eq_bigr (fun j' => (j == j')%:R * (if j' == s i then own s i l p else other s i l p))).
  by rewrite sum_delta.
by move=> j' _; rewrite answers // mxE.
Qed.

(* Layer by layer, all that is seen of the keys is a hit and a miss. *)
Theorem hits_and_misses s i l p : (l < L)%N -> two_valued s i l p.
Proof.
elim: l p => [|l IH] p lL j.
  rewrite [state _ _ _ _]addr0 /= start (_ : ((s^-1)%g j == i) = (j == s i)) //.
  by apply/eqP/eqP => [<-|->]; rewrite ?permKV ?permK.
rewrite /= dotFDr alike // -addrA; congr (_ + _).
rewrite dotFC /dotF mulmx_suml linear_sum /= mulr_sumr -big_split /=.
apply: eq_bigr => r _; rewrite -scalemxAl mxtraceZ -/(dotF _ _) dotFC reads // scalecE.
rewrite -/(written s i l r) (written_y _ (ltnW lL) (IH r (ltnW lL))) -/(hit s i l r) -/(miss s i l r) /own /own_part -/(other _ _ _ _).
by case: eqP => _; rewrite ?mul1r ?mul0r ?addr0 // !mulrDr.
Qed.

(* So each adapter says one thing of its right answer, and another of all others. *)
Lemma writtenE s i l p j : (l < L)%N ->
  written s i l p (y l j) 0 = if j == s i then own s i l p else other s i l p.
Proof. by move=> lL; apply: written_y => //; apply: hits_and_misses. Qed.

Lemma no_extra s i l p : (overlap s i l p).2 = 0 -> gap (kg l) (kh l) (hit s i l p) (miss s i l p) = 0.
Proof. by rewrite /gap /hit /miss => ->; rewrite addr0 subrr mul0r. Qed.

(* ---- a link that is missing ---- *)

(* Where hop k + 1 reads nothing of hop k, no later hop says which answer is right. *)
Theorem broken_link_ties s i k l p : (forall p r, att s i k.+1 p r = 0) -> (k < l < L)%N ->
  forall j j', written s i l p (y l j) 0 = written s i l p (y l j') 0.
Proof.
move=> broken /andP[kl lL]; suff z : (overlap s i l p).2 = 0.
  move=> j j'; rewrite !writtenE // /own /own_part (no_extra z) addr0 -/(other _ _ _ _).
  by case: eqP; case: eqP.
elim: l kl {lL} p => // l IH; rewrite ltnS leq_eqVlt => /predU1P[<-|kl] p /=.
  by rewrite big1 // => r _; rewrite broken mul0r.
by rewrite big1 // => r _; rewrite -/(hit s i l r) -/(miss s i l r) no_extra ?IH // !mulr0.
Qed.

(* So no answer of a later hop is the only largest, if nothing else tells them apart. *)
Theorem broken_link_does_not_compose s i k l p (rest : 'cV[R]_n) be :
  (forall p r, att s i k.+1 p r = 0) -> (k < l < L)%N -> (forall j j', rest (y l j) 0 = rest (y l j') 0) ->
  forall j, ~~ top1 (rest + be *: written s i l p) (y l j).
Proof.
move=> broken kl blind j; apply/negP => /top1P top.
have [j' jj'] : exists j', j' != j.
  have [i0|i0] := eqVneq j (Ordinal (ltnW K2)); last by exists (Ordinal (ltnW K2)); rewrite eq_sym.
  by exists (Ordinal K2); rewrite i0.
have := top (y l j'); rewrite (inj_eq (yI (proj2 (andP kl)))) => /(_ jj').
by rewrite !addcE !scalecE (blind j' j) (broken_link_ties p broken kl j' j) ltxx.
Qed.

(* ---- in order ---- *)
Section InOrder.
(* Position 0 is x alone, position 1 adapter 0's own prompt; at its own relation each hop
   attends to that of the hop before. *)
Hypotheses (x0 : forall s i, x s i 0%N = 0) (x1 : forall s i, 0 < x s i 1%N).
Hypotheses (al0 : forall l, (l.+1 < L)%N -> 0 < al l).
Hypotheses (att0 : forall s i l, (l.+1 < L)%N -> 0 < att s i l.+1 l.+2 l.+1).

(* The light cone. *)
Theorem nothing_before_its_position s i l p : (p <= l)%N -> (overlap s i l p).2 = 0.
Proof.
elim: l p => [|l IH] p; first by rewrite leqn0 => /eqP -> /=.
move=> pl /=; rewrite big1 // => r _; rewrite -/(hit s i l r) -/(miss s i l r) no_extra ?mulr0 //.
by apply: IH; rewrite -ltnS (leq_trans (ltn_ord r)).
Qed.

Lemma miss_lt_hit s i l p : (l < L)%N -> 0 < (overlap s i l p).2 -> miss s i l p < hit s i l p.
Proof.
move=> lL more; have in_range j : dotF (key s l j) (state s i l p) ^+ 2 <= q l * sqF (state s i l p).
  by have := cauchy_schwarz (key s l j) (state s i l p); rewrite [sqF (key _ _ _)]key_key // eqxx.
apply: kap_lt; rewrite ?ltr_addl ?state0 //.
  have [j js] : exists j, j != s i.
    have [e|ne] := eqVneq (s i) (Ordinal (ltnW K2)); last by exists (Ordinal (ltnW K2)); rewrite eq_sym.
    by exists (Ordinal K2); rewrite e.
  by have := in_range j; rewrite hits_and_misses // (negbTE js) mul0r addr0.
by have := in_range (s i); rewrite hits_and_misses // eqxx mul1r.
Qed.

Theorem hit_at_its_position s i l : (l < L)%N -> 0 < (overlap s i l l.+1).2.
Proof.
elim: l => [|l IH] lL; first exact: x1.
rewrite /= big_ord_recr /= big1 => [|r _]; last first.
  rewrite -/(hit s i l r) -/(miss s i l r) no_extra ?mulr0 //.
  by apply: nothing_before_its_position; rewrite -ltnS.
have lL' := ltnW lL; rewrite add0r mulr_gt0 ?att0 // mulr_gt0 ?al0 //.
by apply: gap_gt0; [apply: kh_lt_kg|apply: miss_lt_hit; rewrite ?IH].
Qed.

(* A unit of the last adapter always lifts the right answer. *)
Lemma unit_lifts s i l : (l < L)%N -> 0 < own s i l l.+1.
Proof. by move=> lL; apply: own_gt0; rewrite ?kap0 ?kh_lt_kg ?miss_lt_hit ?hit_at_its_position. Qed.

(* L HOPS IN A STACK.  Fresh facts of the last hop: right for every relabelling from the
   weight B / own on, whatever the positive weights below are. *)
Theorem layers_compose s i l (rest : 'cV[R]_n) B be : (l < L)%N -> T l = words R (y l) ->
  (forall j, rest (y l j) 0 = 0) -> (forall e, rest e 0 <= B) -> 0 <= B ->
  B / own s i l l.+1 < be -> top1 (rest + be *: written s i l l.+1) (y l (s i)).
Proof.
move=> lL TE rz rB B0 large; rewrite /written TE.
have G j j' := keys_gram s j j' lL.
apply: (fresh_facts_compose (yI lL) (gu s lL) (kap0 _ _ _) (kh_lt_kg lL) G _ _ _ rz rB B0 large).
- exact: kap0.
- by apply: miss_lt_hit => //; apply: hit_at_its_position.
by apply: keys_state => //; apply: hits_and_misses.
Qed.

(* Known facts of the last hop: the same, where no coefficient of its adapter is below 0. *)
Theorem layers_compose_known s i l (rest : 'cV[R]_n) (a : 'I_K -> 'I_n) B be : (l < L)%N ->
  T l = targets R (y l) a -> (forall j j', y l j != a j') ->
  gap (kg l) (kh l) (hit s i l l.+1) (miss s i l l.+1) * kh l <= miss s i l l.+1 ->
  (forall j, rest (y l j) 0 = 0) -> (forall e, rest e 0 <= B) -> 0 <= B ->
  B / own s i l l.+1 < be -> top1 (rest + be *: written s i l l.+1) (y l (s i)).
Proof.
move=> lL TE ya nonneg rz rB B0 large; rewrite /written TE.
have G j j' := keys_gram s j j' lL.
apply: (known_facts_compose (yI lL) (gu s lL) (kap0 _ _ _) (kh_lt_kg lL) G _ _ _ rz rB B0
         large ya nonneg).
- exact: kap0.
- by apply: miss_lt_hit => //; apply: hit_at_its_position.
by apply: keys_state => //; apply: hits_and_misses.
Qed.

(* One weight for all questions and all K! relabellings. *)
Theorem one_weight_for_all l (rest : 'S_K -> 'I_K -> 'cV[R]_n) : (l < L)%N ->
  T l = words R (y l) ->
  (forall s i j, rest s i (y l j) 0 = 0) ->
  exists A, forall s i be, A < be -> top1 (rest s i + be *: written s i l l.+1) (y l (s i)).
Proof.
move=> lL TE rz; pose B s i := \sum_e `|rest s i e 0|; pose a s i := B s i / own s i l l.+1.
have B0 s i : 0 <= B s i by apply: sumr_ge0.
have a0 s i : 0 <= a s i by rewrite divr_ge0 // ltW // unit_lifts.
exists (\sum_s \sum_i a s i) => s i be large; apply: (layers_compose lL TE (rz s i) _ (B0 s i)) => [e|].
  rewrite /B (bigD1 e) //=; apply: (le_trans (ler_norm _)); rewrite ler_addl.
  exact: sumr_ge0.
apply: le_lt_trans large; rewrite (bigD1 s) //= (bigD1 i) //= -/(a s i) -addrA ler_addl addr_ge0 //.
  by apply: sumr_ge0.
by apply: sumr_ge0 => t _; apply: sumr_ge0.
Qed.

End InOrder.
End ManyLayers.
