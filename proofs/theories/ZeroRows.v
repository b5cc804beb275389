(* Rules that keep zero rows zero (TIES, DARE, pruning, CAT, linear merging):
   none of them produces an answer that no adapter was trained on. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1 TwoEdits Answers MergeRules ManyFacts.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Vocabulary.
Variables (R : realFieldType) (n m s : nat).
Notation oh := (oh R).
Implicit Types (g b : 'I_n) (W : 'M[R]_(n, m)).

(* g: correct new two-hop answer, b: old one; neither is written by an edit.
   E.g. 'Y REL2 REL1' after r2(y):=z (answer r1(z)), or 'X REL1 REL3' after
   r1(x):=y (answer r3(y)). *)
Theorem zero_rows_keep_old_answer W (M : 'M[R]_(n, m)) (f : 'cV[R]_m) g b :
  W *m f = oh b -> g != b ->
  (forall r, M g r = 0) -> (forall r, M b r = 0) ->
  ((W + M) *m f) g 0 < ((W + M) *m f) b 0.
Proof.
move=> Wf gb Mg Mb; have Z l : (forall r, M l r = 0) -> (M *m f) l 0 = 0.
  by move=> h; rewrite mxE big1 // => r _; rewrite h mul0r.
by rewrite mulmxDl Wf !addcE !Z // !ohE eqxx (negbTE gb) !addr0 ltr01.
Qed.

Theorem lin_gives_no_new_word W (B1 B2 : 'M[R]_(n, s)) (A1 A2 : 'M[R]_(m, s))
    (f : 'cV[R]_m) g b (a1 a2 : R) :
  W *m f = oh b -> g != b ->
  (forall j, B1 g j = 0) -> (forall j, B2 g j = 0) ->
  (forall j, B1 b j = 0) -> (forall j, B2 b j = 0) ->
  ~~ top1 ((W + lin a1 a2 B1 A1 B2 A2) *m f) g.
Proof.
move=> Wf gb h1 h2 h3 h4; have [u1 [u2 e]] := lin_shift_span a1 a2 B1 A1 B2 A2 f.
have Z (B : 'M[R]_(n, s)) (u : 'cV[R]_s) l : (forall j, B l j = 0) -> (B *m u) l 0 = 0.
  by move=> hB; rewrite mxE big1 // => r _; rewrite hB mul0r.
apply/negP => /top1P /(_ b); rewrite eq_sym gb mulmxDl Wf e !addcE !Z // !ohE.
by rewrite eqxx (negbTE gb) !addr0 ltr10 => /(_ isT).
Qed.

Theorem cat_gives_no_new_word W (B1 B2 : 'M[R]_(n, s)) (A1 A2 : 'M[R]_(m, s))
    (f : 'cV[R]_m) g b (a1 a2 : R) :
  W *m f = oh b -> g != b ->
  (forall j, B1 g j = 0) -> (forall j, B2 g j = 0) ->
  (forall j, B1 b j = 0) -> (forall j, B2 b j = 0) ->
  ~~ top1 ((W + cat a1 a2 B1 A1 B2 A2) *m f) g.
Proof.
move=> Wf gb h1 h2 h3 h4; have [u1 [u2 e]] := cat_shift_span a1 a2 B1 A1 B2 A2 f.
have Z (B : 'M[R]_(n, s)) (u : 'cV[R]_s) l : (forall j, B l j = 0) -> (B *m u) l 0 = 0.
  by move=> hB; rewrite mxE big1 // => r _; rewrite hB mul0r.
apply/negP => /top1P /(_ b); rewrite eq_sym gb mulmxDl Wf e !addcE !Z // !ohE.
by rewrite eqxx (negbTE gb) !addr0 ltr10 => /(_ isT).
Qed.

End Vocabulary.
