(* Where composition begins (section 11): a stack of layers that write into one stream.

   The theorem of section 5 is about a readout of one layer.  In a stack, what a lower
   layer answers can be what an upper one reads, if the labels of answers are tied to the
   embeddings of tokens.  Three statements:

   - hop 2 nowhere above hop 1 (the same layer, the reversed order, any number of
     layers): still label-blind, so at most 1/K on average, whatever a layer is;
   - labels that are not tied: at most 1/K on average over relabellings and over the
     arrangements of the labels' vectors, whatever the placement;
   - tied, hop 1 below hop 2: the plain sum is right for *every* relabelling once the
     weight of adapter 2 exceeds (what any rival has from elsewhere) / (what a unit of
     it gives z_(s i)). *)
From mathcomp Require Import all_ssreflect all_fingroup all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers.
From LoRA Require Import MergeRules ManyFacts Relabelling LabelBlindRules Survival.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* ---- stacks ------------------------------------------------------------- *)
Section Stack.
Variables (R : realFieldType) (n m : nat) (P : finType) (X : Type) (last : P).

(* A layer has features at every position of what flows through the stack, X, writes
   on features, and X takes that up: attention, residuals and embeddings are all in
   [sees] and [takes_up], which may be any functions.  [shown] is its part of the score. *)
Record layer := Layer {
  sees : X -> P -> 'cV[R]_m;
  writes : 'cV[R]_m -> 'cV[R]_n;
  takes_up : X -> {ffun P -> 'cV[R]_n} -> X;
  shown : R }.

Definition written (l : layer) (x : X) (p : P) := writes l (sees l x p).
Definition after (l : layer) (x : X) := takes_up l x [ffun p => written l x p].

(* The score at the last position: the sum of what the layers write there. *)
Fixpoint run (ls : seq layer) (x : X) : 'cV[R]_n :=
  if ls is l :: above then shown l *: written l x last + run above (after l x) else 0.

Lemma run_cat (ls ls' : seq layer) (x : X) :
  run (ls ++ ls') x = run ls x + run ls' (foldl (fun x l => after l x) x ls).
Proof. by elim: ls x => [|l ls IH] x /=; rewrite ?add0r // IH addrA. Qed.

(* ---- hop 2 nowhere above hop 1 ---- *)
Variables (K : nat) (z : 'I_K -> 'I_n).
Hypothesis zI : injective z.
Implicit Types (s t : 'S_K) (i j : 'I_K).

(* Writes that never move a z: a base that does not say the new answers, adapter 1. *)
Definition no_z (l : layer) := forall f j, writes l f (z j) 0 = 0.

Fixpoint all_no_z (ls : seq layer) : Prop :=
  if ls is l :: above then no_z l /\ all_no_z above else True.

Lemma run_no_z ls x j : all_no_z ls -> run ls x (z j) 0 = 0.
Proof.
elim: ls x => [|l ls IH] x /= => [_|[nz all]]; first by rewrite mxE.
by rewrite addcE scalecE /written nz mulr0 add0r IH.
Qed.

(* Layers below do not depend on the relabelling s: base, and any part of adapter 2.
   One layer may hold both adapters, merged so that no z-row depends on s.  Above it are
   base and parts of adapter 1, which say no z; what they see may depend on s.  [other]
   is what is added to the score outside the stack, such as an exact base. *)
Theorem hop2_not_above_is_blind (lower : seq layer) (middle : 'S_K -> layer)
    (upper : 'S_K -> seq layer) (x : 'I_K -> X) (other : 'I_K -> 'cV[R]_n) :
  (forall s t y, sees (middle s) y = sees (middle t) y) ->
  (forall s t, shown (middle s) = shown (middle t)) ->
  (forall s t f j, writes (middle s) f (z j) 0 = writes (middle t) f (z j) 0) ->
  (forall s, all_no_z (upper s)) ->
  label_blind z (fun s i => other i + run (lower ++ middle s :: upper s) (x i)).
Proof.
move=> see show blind nz s t i j; rewrite !run_cat /= !addcE !scalecE.
rewrite (@run_no_z (upper s)) // (@run_no_z (upper t)) // !addr0 (show s t).
by congr (_ + (_ + _ * _)); rewrite /written (see s t); apply: blind.
Qed.

(* So it is right on one question in K at most, on average over the relabellings. *)
Theorem hop2_not_above_does_not_compose (lower : seq layer) (middle : 'S_K -> layer)
    (upper : 'S_K -> seq layer) (x : 'I_K -> X) (other : 'I_K -> 'cV[R]_n) :
  (forall s t y, sees (middle s) y = sees (middle t) y) ->
  (forall s t, shown (middle s) = shown (middle t)) ->
  (forall s t f j, writes (middle s) f (z j) 0 = writes (middle t) f (z j) 0) ->
  (forall s, all_no_z (upper s)) ->
  mean_accuracy z (fun s i => other i + run (lower ++ middle s :: upper s) (x i)) <= K%:R^-1.
Proof.
by move=> *; apply: no_composition_by_relabelling => //; apply: hop2_not_above_is_blind.
Qed.

End Stack.

(* ---- the adapters of section 5 in a stack ---------------------------------- *)
Section Placed.
Variables (R : realFieldType) (n m K : nat) (P : finType) (X : Type) (last : P).
Variables (y z : 'I_K -> 'I_n).
Hypotheses (yI : injective y) (zI : injective z) (zy : forall i j, z i != y j).
Implicit Types s : 'S_K.

(* Both adapters in one layer, or adapter 1 there and adapter 2 below: a rule of the list
   merges what lies there, on top of a base W; layers above, if any, say no z. *)
Theorem listed_rules_do_not_compose_in_one_layer (k : nat) (M : rule R n m k)
    (D : 'S_K -> library R n m k) (W : 'M[R]_(n, m))
    (look : X -> P -> 'cV[R]_m) (take : X -> {ffun P -> 'cV[R]_n} -> X) (show : R)
    (lower : seq (layer R n m P X)) (upper : 'S_K -> seq (layer R n m P X))
    (x : 'I_K -> X) (other : 'I_K -> 'cV[R]_n) :
  listed M -> relabelled yI D -> (forall s, all_no_z z (upper s)) ->
  mean_accuracy z (fun s i => other i +
    run last (lower ++ Layer look (fun f => W *m f + M (D s) f) take show :: upper s) (x i))
  <= K%:R^-1.
Proof.
move=> lM rel nz; apply: hop2_not_above_does_not_compose => //= s t f j.
have blind := listed_rules_are_label_blind zy W (fun=> f) lM rel.
exact: (blind s t j j).
Qed.

End Placed.

(* ---- labels that are not tied ---------------------------------------------- *)
Section Untied.
Variables (R : realFieldType) (n m d K : nat) (P : finType) (X : Type) (last : P).
Variables (y z : 'I_K -> 'I_n).
Hypotheses (yI : injective y) (zI : injective z) (zy : forall i j, z i != y j).
Implicit Types s t : 'S_K.

(* The vectors u of a draw are given to the labels y in the arrangement t, the other
   labels have vectors v; no token's embedding is among them. *)
Variables (u : 'I_K -> 'cV[R]_d) (v : 'I_n -> 'cV[R]_d).
Definition vector t (e : 'I_n) : 'cV[R]_d :=
  if [pick j | y j == e] is Some j then u (t j) else v e.
Definition embed t (o : 'cV[R]_n) : 'cV[R]_d := \sum_e o e 0 *: vector t e.

Lemma vector_y t j : vector t (y j) = u (t j).
Proof. by rewrite /vector; case: pickP => [i /eqP /yI ->|/(_ j)]; rewrite ?eqxx. Qed.

Lemma vector_other t e : (forall j, e != y j) -> vector t e = v e.
Proof.
move=> ne; rewrite /vector; case: pickP => // j /eqP ye.
by have := ne j; rewrite -ye eqxx.
Qed.

Lemma vector_relabel s t e : vector t e = vector (s * t)%g (relabel yI s e).
Proof.
rewrite permE; have [i /eqP <-|ne] := pickP (fun i => y i == e).
  by rewrite relabel_fun_y // !vector_y permM permKV.
have ne' i : e != y i by rewrite eq_sym ne.
by rewrite relabel_fun_other // !vector_other.
Qed.

(* Relabelling the answers and rearranging the vectors is the same to what reads them. *)
Lemma embed_relabel s t o : embed t (row_perm (relabel yI s) o) = embed (s * t)%g o.
Proof.
rewrite /embed [RHS](reindex_inj (@perm_inj _ (relabel yI s))) /=.
by apply: eq_bigr => e _; rewrite mxE -vector_relabel.
Qed.

(* A layer of such a stack: what it writes depends on the relabelling, and what is
   written reaches the stream through the labels' vectors alone. *)
Record untied_layer := Untied {
  looks : X -> P -> 'cV[R]_m;
  answers : 'S_K -> 'cV[R]_m -> 'cV[R]_n;
  mixes : X -> {ffun P -> 'cV[R]_d} -> X;
  share_of : R }.

Definition with_labels s t (l : untied_layer) : layer R n m P X :=
  Layer (looks l) (answers l s)
        (fun x o => mixes l x [ffun p => embed t (o p)]) (share_of l).

(* Relabelling permutes what the layer writes: base, adapters and label-blind merges. *)
Definition permuted_by_labels (l : untied_layer) :=
  forall s f, answers l s f = row_perm (relabel yI s) (answers l 1%g f).

Fixpoint all_permuted (ls : seq untied_layer) : Prop :=
  if ls is l :: above then permuted_by_labels l /\ all_permuted above else True.

(* That is so of a rule that treats labels alike, on a base that writes no y. *)
Lemma rule_is_permuted (k : nat) (M : rule R n m k) (D : 'S_K -> library R n m k)
    (W : 'M[R]_(n, m)) look mix (c : R) :
  treats_labels_alike M -> relabelled yI D -> (forall i j, W (y i) j = 0) ->
  permuted_by_labels (Untied look (fun s f => W *m f + M (D s) f) mix c).
Proof.
move=> alike rel W0 s f /=; rewrite row_permD -alike row_perm_mul fixed_by_relabel //.
congr (_ + M _ _).
by apply: library_ext => l; rewrite [RHS]ffunE rel.
Qed.

Lemma run_relabelled (ls : seq untied_layer) s t (x : X) : all_permuted ls ->
  run last [seq with_labels s t l | l <- ls] x =
  row_perm (relabel yI s) (run last [seq with_labels 1%g (s * t)%g l | l <- ls] x).
Proof.
elim: ls x => [|l ls IH] x /= => [_|[cov all]].
  by apply/matrixP => e j; rewrite !mxE.
rewrite row_permD row_permZ /written /= cov; congr (_ + _).
rewrite -IH //; congr (run last _ _); rewrite /after /=; congr (mixes _ _ _).
by apply/ffunP => p; rewrite !ffunE /written /= cov embed_relabel.
Qed.

(* The mean over the K! arrangements of the label vectors of one draw. *)
Definition mean_over_arrangements (o : 'S_K -> 'S_K -> 'I_K -> 'cV[R]_n) : R :=
  (\sum_t mean_accuracy z (fun s => o s t)) / (K`!)%:R.

Theorem rearranged_is_chance (o : 'S_K -> 'S_K -> 'I_K -> 'cV[R]_n) :
  (forall s t i j, o s t i (z j) 0 = o 1%g (s * t)%g i (z j) 0) ->
  mean_over_arrangements o <= K%:R^-1.
Proof.
move=> seen; pose o' t s := o s (s^-1 * t)%g.
have blind t : label_blind z (o' t).
  by move=> s s' i j; rewrite /o' seen [RHS]seen !mulKVg.
have Fp : 0 < (K`!)%:R :> R by rewrite ltr0n fact_gt0.
rewrite /mean_over_arrangements ler_pdivr_mulr //.
have -> : \sum_t mean_accuracy z (fun s => o s t) = \sum_t mean_accuracy z (o' t).
  rewrite /mean_accuracy -!mulr_suml; congr (_ / _).
  rewrite exchange_big [RHS]exchange_big /=; apply: eq_bigr => s _.
  by rewrite [LHS](reindex_inj (mulgI (s^-1)%g)).
apply: (@le_trans _ _ (\sum_(t : 'S_K) K%:R^-1)).
  by apply: ler_sum => t _; apply: no_composition_by_relabelling.
by rewrite sumr_const card_Sn mulr_natr.
Qed.

(* Any number of layers, any placement: untied labels compose no better than chance, on
   average over relabellings and arrangements. *)
Theorem untied_labels_do_not_compose (ls : seq untied_layer) (x : 'I_K -> X)
    (other : 'I_K -> 'cV[R]_n) : all_permuted ls ->
  mean_over_arrangements (fun s t i =>
    other i + run last [seq with_labels s t l | l <- ls] (x i)) <= K%:R^-1.
Proof.
move=> all; apply: rearranged_is_chance => s t i j.
by rewrite !addcE run_relabelled // mxE relabel_z.
Qed.

End Untied.

(* ---- hop 1 below hop 2, tied ------------------------------------------------ *)
Section OneHit.
Variables (R : realFieldType) (K : nat) (kg kh hit miss : R).

(* Adapter 2's coefficients where the Gram matrix of its K keys has kg on and kh off its
   diagonal, and a state overlaps with one key by hit and with every other by miss. *)
Definition gap : R := (hit - miss) / (kg - kh).
Definition other_part : R := (miss - gap * kh) / (kg + kh *+ K.-1).
Definition own_part : R := other_part + gap.

Hypotheses (kh0 : 0 <= kh) (hg : kh < kg).

Lemma row_sum_gt0 : 0 < kg + kh *+ K.-1.
Proof. by rewrite ltr_paddr ?mulrn_wge0 // (le_lt_trans kh0). Qed.

Lemma gap_gt0 : miss < hit -> 0 < gap.
Proof. by move=> lt; rewrite divr_gt0 // subr_gt0. Qed.

(* A unit of adapter 2 always lifts the right answer. *)
Lemma own_gt0 : 0 <= miss -> miss < hit -> 0 < own_part.
Proof.
move=> m0 lt; have S0 := row_sum_gt0; have g0 := gap_gt0 lt.
have -> : own_part = (miss + gap * (kg + kh *+ K.-1 - kh)) / (kg + kh *+ K.-1).
  rewrite /own_part /other_part -[X in _ + X](mulfK (lt0r_neq0 S0)) -mulrDl.
  by congr (_ / _); move: (kh *+ _) => q; ring.
rewrite divr_gt0 // ltr_paddl // mulr_gt0 // addrAC ltr_paddr ?mulrn_wge0 //.
by rewrite subr_gt0.
Qed.

Lemma coefficients (G : 'M[R]_K) (i : 'I_K) : G \in unitmx ->
  (forall j l, G j l = if j == l then kg else kh) ->
  invmx G *m (\col_j (if j == i then hit else miss)) =
  \col_j (if j == i then own_part else other_part).
Proof.
move=> gu GE; set c := RHS.
suff <- : G *m c = \col_j (if j == i then hit else miss) by rewrite mulKmx.
apply/colP => j; rewrite [LHS]mxE [RHS]mxE.
have S0 := row_sum_gt0.
have -> : \sum_l G j l * c l 0 = other_part * (kg + kh *+ K.-1) + gap * G j i.
  rewrite (eq_bigr (fun l => other_part * G j l + (i == l)%:R * (gap * G j l))); last first.
    by move=> l _; rewrite mxE eq_sym; case: eqP => _; rewrite /own_part /=; ring.
  rewrite big_split /= sum_delta -mulr_sumr; congr (_ * _ + _).
  rewrite (bigD1 j) //= GE eqxx (eq_bigr (fun=> kh)) => [|l lj].
    by rewrite sumr_const cardC1 card_ord.
  by rewrite GE eq_sym (negbTE lj).
rewrite /other_part mulfVK ?lt0r_neq0 // GE; case: eqP => [_|_]; last by ring.
rewrite -addrA -mulrN -mulrDr addrC [- kh + kg]addrC /gap mulfVK ?subrK //.
by rewrite subr_eq0 gt_eqF.
Qed.

End OneHit.

Section Ordered.
Variables (R : realFieldType) (n m K : nat) (z : 'I_K -> 'I_n).
Hypothesis zI : injective z.
Variables (F2 : 'M[R]_(m, K)) (kg kh hit miss be B : R).
Hypotheses (gu : gram F2 \in unitmx) (kh0 : 0 <= kh) (hg : kh < kg).
Hypothesis gramE : forall j l, gram F2 j l = if j == l then kg else kh.
Hypotheses (miss0 : 0 <= miss) (lt : miss < hit).
Notation own := (own_part K kg kh hit miss).
Notation elsewhere := (other_part K kg kh hit miss).

(* What layer 2 sees of a question whose bridge entity is the i-th: [rest] is all of the
   score that is not adapter 2, base and layer 1. *)
Variables (f : 'cV[R]_m) (i : 'I_K) (rest : 'cV[R]_n).
Hypothesis overlaps : F2^T *m f = \col_j (if j == i then hit else miss).
Hypotheses (rest_z : forall j, rest (z j) 0 = 0) (rest_B : forall e, rest e 0 <= B).
Hypotheses (B0 : 0 <= B) (large : B / own < be).

Lemma edit_applied (T : 'M[R]_(n, K)) :
  edit F2 T *m f = T *m \col_j (if j == i then own else elsewhere).
Proof. by rewrite /edit -!mulmxA overlaps (coefficients hit miss kh0 hg i gu gramE). Qed.

Let own0 : 0 < own := own_gt0 K kh0 hg miss0 lt.
Let be0 : 0 < be.
Proof. by apply: le_lt_trans large; rewrite divr_ge0 // ltW. Qed.

(* Any targets that are one-hot at the z and lift nothing else. *)
Lemma ordered_top1 (T : 'M[R]_(n, K)) :
  (forall j l, T (z j) l = (j == l)%:R) ->
  (forall e, (forall j, e != z j) ->
     (T *m \col_j (if j == i then own else elsewhere)) e 0 <= 0) ->
  top1 (rest + be *: (edit F2 T *m f)) (z i).
Proof.
move=> Tz To; rewrite edit_applied; set c := \col_j _.
have at_z j : (rest + be *: (T *m c)) (z j) 0 = be * (if j == i then own else elsewhere).
  rewrite addcE scalecE rest_z add0r mxE (eq_bigr (fun l => (j == l)%:R * c l 0)).
    by rewrite sum_delta mxE.
  by move=> l _; rewrite Tz.
apply/top1P => e ez; rewrite at_z eqxx.
have [j /eqP ej|ne] := pickP (fun j => z j == e).
  rewrite -ej at_z ltr_pmul2l //; move: ez; rewrite -ej (inj_eq zI) => /negbTE ->.
  by rewrite /own_part ltr_addl gap_gt0.
have ne' j : e != z j by rewrite eq_sym ne.
rewrite addcE scalecE; apply: (@le_lt_trans _ _ B); last by rewrite -ltr_pdivr_mulr.
by rewrite -[leRHS]addr0 ler_add // pmulr_rle0 // To.
Qed.

(* FRESH facts. *)
Theorem fresh_facts_compose : top1 (rest + be *: (edit F2 (words R z) *m f)) (z i).
Proof.
apply: ordered_top1 => [j l|e ez]; first by rewrite mxE (inj_eq zI).
by rewrite mxE big1 // => l _; rewrite mxE (negbTE (ez l)) mul0r.
Qed.

(* KNOWN facts: adapter 2 takes its old answers a away, which helps where its
   coefficients are nowhere below 0. *)
Theorem known_facts_compose (a : 'I_K -> 'I_n) :
  (forall j l, z j != a l) -> gap kg kh hit miss * kh <= miss ->
  top1 (rest + be *: (edit F2 (targets R z a) *m f)) (z i).
Proof.
move=> za nonneg; apply: ordered_top1 => [j l|e ez]; first by rewrite targetsE.
rewrite mxE -oppr_ge0 -sumrN sumr_ge0 // => l _.
rewrite !mxE (negbTE (ez l)) sub0r mulNr opprK mulr_ge0 ?ler0n //.
case: eqP => _; first exact: ltW.
by rewrite divr_ge0 ?subr_ge0 // ltW // row_sum_gt0.
Qed.

End Ordered.

(* The hypotheses of [Ordered], from embeddings: layer 1 sees its own prompt (x_i, R1) at
   the position of R1 and writes y_(s i) there; the labels' vectors are the columns of the
   embedding E; layer 2 attends to that position with weight att and value matrix V. *)
Section Tied.
Variables (R : realFieldType) (n d m m1 K : nat) (y z : 'I_K -> 'I_n).
Hypotheses (yI : injective y) (zI : injective z).
Variables (W1 : 'M[R]_(n, m1)) (F1 : 'M[R]_(m1, K)) (E : 'M[R]_(d, n)) (V : 'M[R]_d).
Variables (phi : 'cV[R]_d -> 'cV[R]_m) (kap : R -> R -> R -> R) (key : 'I_K -> 'cV[R]_d).
Variables (q q0 al att be B : R) (seen : 'S_K -> 'I_K -> 'cV[R]_d) (c0 : 'S_K -> 'I_K -> R).
Implicit Types (s : 'S_K) (i j l : 'I_K).

(* What layer 1 writes at R1 under adapter 1 at weight al, on top of its base. *)
Definition at_R1 s i : 'cV[R]_n :=
  (W1 + al *: edit F1 (words R (y \o s) - W1 *m F1)) *m col i F1.
Definition state s i : 'cV[R]_d := seen s i + att *: (V *m (E *m at_R1 s i)).
Definition keys : 'M[R]_(m, K) := \matrix_(r, j) phi (key j) r 0.

(* Layer 2 finds y_j's embedding, attended to, in the key of (y_j, R2) and in no other
   key, the old answer's in none; all else it sees overlaps with every key alike. *)
Hypothesis tied : forall j l, dotF (key j) (V *m (E *m oh R (y l))) = (j == l)%:R.
Hypothesis old : forall i j, dotF (key j) (V *m (E *m (W1 *m col i F1))) = 0.
Hypothesis alike : forall s i j, dotF (key j) (seen s i) = c0 s i.
Hypothesis key_key : forall j l, dotF (key j) (key l) = if j == l then q else q0.

(* The kernel sees inner products of hidden states alone, and grows with them as far as
   they can go (Cauchy and Schwarz). *)
Hypothesis kernel_keys : forall j l,
  dotF (phi (key j)) (phi (key l)) = kap q q (dotF (key j) (key l)).
Hypothesis kernel_state : forall s i j,
  dotF (phi (key j)) (phi (state s i)) = kap q (sqF (state s i)) (dotF (key j) (state s i)).
Hypothesis kap0 : forall b c, 0 <= kap q b c.
Hypothesis kap_lt : forall b c c', 0 < b -> c ^+ 2 <= q * b -> c' ^+ 2 <= q * b ->
  c < c' -> kap q b c < kap q b c'.
Hypothesis state0 : forall s i, 0 < sqF (state s i).
Hypothesis in_range : forall s i, c0 s i ^+ 2 <= q * sqF (state s i).

Hypotheses (gu1 : gram F1 \in unitmx) (gu2 : gram keys \in unitmx).
Hypotheses (q0_0 : 0 <= q0) (q0q : q0 < q) (al0 : 0 < al) (att0 : 0 < att).

Lemma at_R1E s i : at_R1 s i = al *: oh R (y (s i)) + (1 - al) *: (W1 *m col i F1).
Proof.
rewrite /at_R1 mulmxDl -[(al *: _) *m _]scalemxAl own_prompt //.
rewrite (_ : col i _ = oh R (y (s i)) - W1 *m col i F1); last first.
  by rewrite !colE mulmxBl -mulmxA -!colE col_words.
by rewrite scalerBr scalerBl scale1r addrCA.
Qed.

Definition miss s i : R := kap q (sqF (state s i)) (c0 s i).
Definition hit s i : R := kap q (sqF (state s i)) (c0 s i + att * al).

Lemma key_state s i j : dotF (key j) (state s i) = c0 s i + (j == s i)%:R * (att * al).
Proof.
rewrite /state dotFDr alike dotFZr at_R1E mulmxDr -!scalemxAr mulmxDr -!scalemxAr.
by rewrite dotFDr !dotFZr tied old mulr0 addr0; move: (_ == _)%:R => h; ring.
Qed.

Lemma keys_state s i :
  keys^T *m phi (state s i) = \col_j (if j == s i then hit s i else miss s i).
Proof.
apply/colP => j; rewrite [RHS]mxE.
have -> : (keys^T *m phi (state s i)) j 0 = dotF (phi (key j)) (phi (state s i)).
  by rewrite dotF_col mxE; apply: eq_bigr => r _; rewrite !mxE.
rewrite kernel_state key_state.
by case: eqP => _; rewrite /hit /miss ?mul1r ?mul0r ?addr0.
Qed.

Lemma miss_lt_hit s i : miss s i < hit s i.
Proof.
apply: kap_lt; rewrite ?state0 ?in_range ?ltr_addl ?mulr_gt0 //.
have := cauchy_schwarz (key (s i)) (state s i).
by rewrite key_state eqxx mul1r [sqF (key _)]key_key eqxx.
Qed.

Lemma gram_off_lt_on : kap q q q0 < kap q q q.
Proof.
have qp : 0 < q by apply: le_lt_trans q0q.
by apply: kap_lt; rewrite // -expr2 ?ler_sqr ?nnegrE // ltW.
Qed.

Lemma keys_gram j l : gram keys j l = if j == l then kap q q q else kap q q q0.
Proof.
have -> : gram keys j l = dotF (phi (key j)) (phi (key l)).
  by rewrite dotF_col /gram mxE; apply: eq_bigr => r _; rewrite !mxE.
by rewrite kernel_keys key_key; case: eqP.
Qed.

(* WHERE COMPOSITION BEGINS.  Fresh facts: right for every relabelling, whatever else base
   and layer 1 say, if that is no z and at most B, from the weight B / own on. *)
Theorem tied_layers_compose s i (rest : 'cV[R]_n) :
  (forall j, rest (z j) 0 = 0) -> (forall e, rest e 0 <= B) -> 0 <= B ->
  B / own_part K (kap q q q) (kap q q q0) (hit s i) (miss s i) < be ->
  top1 (rest + be *: (edit keys (words R z) *m phi (state s i))) (z (s i)).
Proof.
move=> rz rB B0 large.
apply: (fresh_facts_compose zI gu2 (kap0 q q0) gram_off_lt_on keys_gram _ _ _ rz rB B0 large).
- exact: kap0.
- exact: miss_lt_hit.
exact: keys_state.
Qed.

(* Known facts: the same, where no coefficient of adapter 2 is below 0. *)
Theorem tied_layers_compose_known s i (rest : 'cV[R]_n) (a : 'I_K -> 'I_n) :
  (forall j l, z j != a l) ->
  gap (kap q q q) (kap q q q0) (hit s i) (miss s i) * kap q q q0 <= miss s i ->
  (forall j, rest (z j) 0 = 0) -> (forall e, rest e 0 <= B) -> 0 <= B ->
  B / own_part K (kap q q q) (kap q q q0) (hit s i) (miss s i) < be ->
  top1 (rest + be *: (edit keys (targets R z a) *m phi (state s i))) (z (s i)).
Proof.
move=> za nonneg rz rB B0 large.
apply: (known_facts_compose zI gu2 (kap0 q q0) gram_off_lt_on keys_gram _ _ _ rz rB B0 large
         za nonneg).
- exact: kap0.
- exact: miss_lt_hit.
exact: keys_state.
Qed.

End Tied.

(* ---- two steps are two tied layers, unrolled in time --------------------------- *)
Section Unrolled.
Variables (R : realFieldType) (n m : nat) (M : 'M[R]_(n, m)) (ask : 'I_n -> 'cV[R]_m).

(* The same model twice; the answer, fed back as a token, is what the second pass sees. *)
Definition pass (c : R) : layer R n m [finType of unit] 'cV[R]_m :=
  Layer (fun f _ => f) (fun f => M *m f)
        (fun f o => if [pick e | top1 (o tt) e] is Some e then ask e else f) c.

Lemma top1_unique (o : 'cV[R]_n) e e' : top1 o e -> top1 o e' -> e = e'.
Proof.
move=> /top1P top /top1P top'; apply/eqP/contraT => ne.
by have := lt_trans (top e' _) (top' e ne); rewrite eq_sym ltxx => /(_ ne).
Qed.

(* Answering in two steps is right exactly where the stack of the two passes is. *)
Theorem two_steps_are_two_layers (f : 'cV[R]_m) (first z : 'I_n) : top1 (M *m f) first ->
  answers_in_two_steps M f ask z <-> top1 (run tt [:: pass 0; pass 1] f) z.
Proof.
move=> top; have -> : run tt [:: pass 0; pass 1] f = M *m ask first.
  rewrite /= scale0r add0r scale1r addr0 /written /= /after /=; congr (M *m _).
  rewrite ffunE /written /=; case: pickP => [e te|/(_ first)]; last by rewrite top.
  by rewrite (top1_unique te top).
split=> [[e te]|]; first by rewrite (top1_unique te top).
by exists first.
Qed.

End Unrolled.
