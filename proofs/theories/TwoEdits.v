(* Theorem 2 (5 in the appendix), the output vector: the sum of two adapters that
   hold one fact each. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From LoRA Require Import Frobenius LeastNormEdit Proposition1.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Coeffs.
Variables (R : realFieldType) (n m : nat).
Implicit Types (W : 'M[R]_(n, m)) (w : 'cV[R]_n) (v f : 'cV[R]_m).

Definition coef v f : R := dotF v f / sqF v.

(* Theorem 2, eq. 17-19, at every width: the sum of two edits adds c1 w1 + c2 w2 to the
   output on f, with c_j = <v_j, f> / |v_j|^2. *)
Theorem theorem2_output W w1 w2 v1 v2 f :
  (W + rk1 w1 v1 + rk1 w2 v2) *m f
  = W *m f + coef v1 f *: w1 + coef v2 f *: w2.
Proof. by rewrite !mulmxDl !rk1_apply. Qed.

Definition nonneg (u : 'cV[R]_m) := forall i, 0 <= u i 0.

Lemma dotF_col (u v : 'cV[R]_m) : dotF u v = \sum_i u i 0 * v i 0.
Proof. by rewrite dotFE; apply: eq_bigr => i _; rewrite big_ord1. Qed.

Theorem coef_ge0 v f : nonneg v -> nonneg f -> 0 <= coef v f.
Proof.
move=> hv hf; rewrite divr_ge0 ?sqF_ge0 // dotF_col.
by apply: sumr_ge0 => i _; rewrite mulr_ge0.
Qed.

(* ReLU features: the coefficient is positive iff a neuron is active on both. *)
Theorem coef_gt0 v f : nonneg v -> nonneg f ->
  (0 < coef v f) = [exists i, (0 < v i 0) && (0 < f i 0)].
Proof.
move=> hv hf; rewrite lt_def coef_ge0 // andbT /coef mulf_eq0 invr_eq0 sqF_eq0.
rewrite dotF_col psumr_eq0 => [|i _]; last by rewrite mulr_ge0.
apply/idP/existsP => [|[i /andP[vi fi]]]; last first.
  apply/negP => /orP[/allP /(_ i (mem_index_enum i))|/eqP v0].
    by rewrite mulf_eq0 => /orP[]/eqP e; move: vi fi; rewrite e ltxx.
  by move: vi; rewrite v0 mxE ltxx.
rewrite negb_or => /andP[/allPn[i _]]; rewrite mulf_eq0 negb_or => /andP[a b] _.
by exists i; rewrite !lt_def a b hv hf.
Qed.

(* Exact-equality correctness is lost already on the one-hop training prompt. *)
Theorem sum_merge_breaks_one_hop W w1 w2 v1 v2 : v1 != 0 -> w2 != 0 -> v2 != 0 ->
  ((W + rk1 w1 v1 + rk1 w2 v2) *m v1 == W *m v1 + w1) = (dotF v2 v1 == 0).
Proof.
move=> v10 w20 v20; rewrite theorem2_output -subr_eq0.
rewrite /coef -/(sqF v1) divff ?sqF_eq0 // scale1r addrAC subrr add0r.
by rewrite scaler_eq0 (negbTE w20) orbF mulf_eq0 invr_eq0 sqF_eq0 (negbTE v20) orbF.
Qed.

(* Some hypothesis on the base model's two-hop output is necessary. *)
Theorem base_hypothesis_needed v1 v2 f o1 o2 w1 w2 (goal : 'cV[R]_n) :
  gram (row_mx v1 (row_mx v2 f)) \in unitmx ->
  exists W : 'M[R]_(n, m), [/\ W *m v1 = o1, W *m v2 = o2 &
    (W + rk1 w1 v1 + rk1 w2 v2) *m f = goal].
Proof.
move=> gu; set g := goal - coef v1 f *: w1 - coef v2 f *: w2.
exists (edit (row_mx v1 (row_mx v2 f)) (row_mx o1 (row_mx o2 g))).
have := edit_feasible (row_mx o1 (row_mx o2 g)) gu.
rewrite !mul_mx_row => /eq_row_mx[e1 /eq_row_mx[e2 e3]]; split=> //.
rewrite theorem2_output e3 /g; set s := _ *: w1; set t := _ *: w2.
by rewrite [goal - s - t + s]addrAC !subrK.
Qed.

End Coeffs.

Section OneHot.
Variables (R : realFieldType) (n : nat).
Implicit Types (b y z a j : 'I_n) (c : R) (o : 'cV[R]_n).

Definition oh b : 'cV[R]_n := delta_mx b 0.

Lemma ohE b j : oh b j 0 = (j == b)%:R.
Proof. by rewrite mxE andbT. Qed.

(* y0 = r1 x, y = r1' x, a = r2 y, z = r2' y, b = r2 (r1 x) *)
Definition out b y y0 z a c1 c2 : 'cV[R]_n :=
  oh b + c1 *: (oh y - oh y0) + c2 *: (oh z - oh a).

Lemma outE b y y0 z a c1 c2 j : out b y y0 z a c1 c2 j 0 =
  (j == b)%:R + c1 * ((j == y)%:R - (j == y0)%:R)
  + c2 * ((j == z)%:R - (j == a)%:R).
Proof. by rewrite !mxE !andbT. Qed.

(* Strict argmax readout. *)
Definition top1 o z := [forall j, (j != z) ==> (o j 0 < o z 0)].

Lemma top1P o z : reflect (forall j, j != z -> o j 0 < o z 0) (top1 o z).
Proof.
apply: (iffP forallP) => h j; first exact/implyP.
by apply/implyP; apply: h.
Qed.

(* Exact-equality version, clean sufficient hypothesis and full iff. *)
Theorem theorem2_output_iff b y y0 z a c1 c2 :
  y != y0 -> z != a -> y != z -> y != a -> y != b ->
  out b y y0 z a c1 c2 = oh z <->
  c1 = 0 /\ (c2 = 1 /\ a = b \/ c2 = 0 /\ z = b).
Proof.
move=> yy0 za yz ya yb; split=> [e|[-> [[-> ->]|[-> ->]]]].
all: rewrite /out ?scale0r ?scale1r ?addr0 1?addrC ?subrK //.
have E j : out b y y0 z a c1 c2 j 0 = (j == z)%:R by rewrite e ohE.
have := E y; rewrite outE eqxx (negbTE yy0) (negbTE yz) (negbTE ya) (negbTE yb).
rewrite add0r !subr0 mulr1 mulr0 addr0 => c10; split=> //.
have := E z; rewrite outE c10 mul0r addr0 eqxx (negbTE za) subr0 mulr1.
have := E a; rewrite outE c10 mul0r addr0 eqxx [a == z]eq_sym (negbTE za) sub0r.
have [->|zb] := eqVneq z b => ea.
  by move/eqP; rewrite -subr_eq0 addrAC subrr add0r => /eqP; right.
rewrite add0r => c21; left; split=> //; apply/eqP; move: ea; rewrite c21 mul1r.
by case: (a == b) => // /eqP; rewrite add0r oppr_eq0 oner_eq0.
Qed.

(* Exact-equality version with no typing assumption at all: the complete list
   of coincidences under which strictly positive overlaps give the right row. *)
Theorem theorem2_output_sharp b y y0 z a c1 c2 :
  y != y0 -> z != a -> 0 < c1 -> 0 < c2 ->
  out b y y0 z a c1 c2 = oh z <->
  [\/ [/\ y = a, y0 = z, z = b & c1 = c2],
      [/\ y = z, y0 = a, a = b & c1 + c2 = 1],
      [/\ y = a, y0 = b, c1 = 1 & c2 = 1] |
      [/\ y = a, y0 = z, b = y & c2 - c1 = 1]].
Proof.
move=> yy0 za c1p c2p.
have c1n : c1 != 0 by rewrite gt_eqF.
have c2n : c2 != 0 by rewrite gt_eqF.
split=> [e|]; last first.
  rewrite /out => -[[-> -> -> ->]|[-> -> <- e]|[-> -> -> ->]|[-> -> -> e]].
  - by rewrite -addrA -scalerDr addrA subrK subrr scaler0 addr0.
  - by rewrite -addrA -scalerDl e scale1r addrC subrK.
  - by rewrite !scale1r [oh b + _]addrC subrK addrC subrK.
  - rewrite -[oh a - oh z]opprB scalerN -addrA -scaleNr -scalerDl addrC.
    by rewrite [- c1 + c2]addrC e scale1r subrK.
have E j : out b y y0 z a c1 c2 j 0 = (j == z)%:R by rewrite e ohE.
have [yz|yz] := eqVneq y z.
  have zy0 : z != y0 by rewrite -yz.
  have := E z; rewrite outE eqxx (negbTE za) (negbTE zy0) -yz eqxx !subr0 !mulr1.
  have [yb|_] := eqVneq y b.
    rewrite -addrA => /eqP; rewrite -subr_eq0 addrAC subrr add0r.
    by rewrite gt_eqF // addr_gt0.
  rewrite add0r => c12.
  have := E y0; rewrite outE eqxx [y0 == y]eq_sym [y0 == z]eq_sym.
  rewrite (negbTE yy0) (negbTE zy0) !sub0r mulrN1 mulrN => /eqP.
  rewrite subr_eq add0r subr_eq.
  have [y0a|_] := eqVneq y0 a.
    rewrite mulr1 addrC c12; have [y0b _|_] := eqVneq y0 b.
      by apply: Or42; rewrite -y0a -y0b.
    by rewrite eq_sym oner_eq0.
  rewrite mulr0 add0r; have [_ /eqP c1E|_] := eqVneq y0 b; last first.
    by rewrite eq_sym (negbTE c1n).
  by move: c12 c2n; rewrite -c1E => /eqP; rewrite -subr_eq0 addrAC subrr add0r => ->.
have := E y; rewrite outE eqxx (negbTE yy0) (negbTE yz) subr0 mulr1 sub0r.
have [ya|_] := eqVneq y a; last first.
  rewrite oppr0 mulr0 addr0 => /eqP; rewrite gt_eqF // ltr_paddl //.
  exact: ler0n.
rewrite mulrN1 => /eqP; rewrite subr_eq add0r => /eqP Ey.
have Ez := E z; rewrite outE eqxx (negbTE za) [z == y]eq_sym in Ez.
have Ey0 := E y0; rewrite outE eqxx in Ey0.
rewrite (negbTE yz) subr0 mulr1 sub0r mulrN in Ez.
rewrite [y0 == y]eq_sym (negbTE yy0) sub0r mulrN1 -ya [y0 == y]eq_sym in Ey0.
rewrite (negbTE yy0) subr0 in Ey0.
have [y0z|y0z] := eqVneq y0 z.
  rewrite y0z eqxx mulr1 in Ez.
  have [zb|zb] := eqVneq z b.
    apply: Or41; split=> //; apply/eqP; move/eqP: Ez.
    by rewrite zb eqxx -addrA -subr_eq0 addrAC subrr add0r addrC subr_eq0 eq_sym.
  move: Ez; rewrite (negbTE zb) add0r addrC => Ez; apply: Or44; split=> //.
  move: Ey; have [->//|_] := eqVneq y b; rewrite add0r => c1E.
  by move/eqP: Ez; rewrite c1E subrr eq_sym oner_eq0.
rewrite (negbTE y0z) mulr0 addr0 in Ey0.
move/eqP: Ey0; rewrite subr_eq add0r; have [y0b|_] := eqVneq y0 b; last first.
  by rewrite eq_sym (negbTE c1n).
move/eqP=> c1E; apply: Or43; split=> //; rewrite -?c1E //.
by rewrite -Ey -c1E -y0b (negbTE yy0) add0r.
Qed.

End OneHot.
