package io.fletch.ffm.x86;

/**
 * An x86-64 assembler. Methods are named like instructions and take operands in Intel's order,
 * destination first; the result of {@link #assemble()} is position-independent machine code. Not
 * thread-safe: one assembler per function and thread.
 *
 * <p>Vector instructions take the width from their registers and pick VEX or EVEX (see {@link
 * Encoder}). {@link #masked}, {@link #zeroed} and {@link #evex} concern the next instruction.
 * Operands that an instruction cannot encode are refused with {@link IllegalArgumentException};
 * whether the CPU has the instruction is the caller's business.
 *
 * <p>Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
 */
public final class Assembler extends Encoder {

  // ---- moves

  public void vmovups(Vec d, Operand s) {
    two(NP, M0F, 0x10, W0, Tuple.FULL, d, s);
  }

  public void vmovups(Mem d, Vec s) {
    store(NP, M0F, 0x11, W0, Tuple.FULL, d, s);
  }

  public void vmovaps(Vec d, Operand s) {
    two(NP, M0F, 0x28, W0, Tuple.FULL, d, s);
  }

  public void vmovaps(Mem d, Vec s) {
    store(NP, M0F, 0x29, W0, Tuple.FULL, d, s);
  }

  /** {@code vmovdqu}, or {@code vmovdqu32} in EVEX form. */
  public void vmovdqu(Vec d, Operand s) {
    two(PF3, M0F, 0x6f, W0, Tuple.FULL, d, s);
  }

  public void vmovdqu(Mem d, Vec s) {
    store(PF3, M0F, 0x7f, W0, Tuple.FULL, d, s);
  }

  /** {@code vmovdqa}, or {@code vmovdqa32} in EVEX form. */
  public void vmovdqa(Vec d, Operand s) {
    two(P66, M0F, 0x6f, W0, Tuple.FULL, d, s);
  }

  public void vmovdqa(Mem d, Vec s) {
    store(P66, M0F, 0x7f, W0, Tuple.FULL, d, s);
  }

  public void vmovdqu8(Vec d, Operand s) {
    two(PF2, M0F, 0x6f, W0 | EVEX_ONLY, Tuple.FULL, d, s);
  }

  public void vmovdqu8(Mem d, Vec s) {
    store(PF2, M0F, 0x7f, W0 | EVEX_ONLY, Tuple.FULL, d, s);
  }

  public void vmovdqu16(Vec d, Operand s) {
    two(PF2, M0F, 0x6f, W1 | EVEX_ONLY, Tuple.FULL, d, s);
  }

  public void vmovdqu16(Mem d, Vec s) {
    store(PF2, M0F, 0x7f, W1 | EVEX_ONLY, Tuple.FULL, d, s);
  }

  public void vmovshdup(Vec d, Operand s) {
    two(PF3, M0F, 0x16, W0, Tuple.FULL, d, s);
  }

  public void vmovsldup(Vec d, Operand s) {
    two(PF3, M0F, 0x12, W0, Tuple.FULL, d, s);
  }

  public void vmovntps(Mem d, Vec s) {
    store(NP, M0F, 0x2b, W0 | NO_MASK, Tuple.FULL, d, s);
  }

  public void vmovhlps(Xmm d, Xmm a, Xmm b) {
    scalar(NP, M0F, 0x12, W0 | NO_MASK, Tuple.ONE64, d, a, b);
  }

  public void vmovlhps(Xmm d, Xmm a, Xmm b) {
    scalar(NP, M0F, 0x16, W0 | NO_MASK, Tuple.ONE64, d, a, b);
  }

  public void vmovss(Xmm d, Xmm a, Xmm b) {
    scalar(PF3, M0F, 0x10, W0, Tuple.ONE32, d, a, b);
  }

  public void vmovss(Xmm d, Mem s) {
    vector(PF3, M0F, 0x10, W0, Tuple.ONE32, 16, d.code(), 0, s, 0);
  }

  public void vmovss(Mem d, Xmm s) {
    vector(PF3, M0F, 0x11, W0 | NO_ZEROING, Tuple.ONE32, 16, s.code(), 0, d, 0);
  }

  public void vmovq(Xmm d, Mem s) {
    vector(PF3, M0F, 0x7e, EVEX_W1 | NO_MASK, Tuple.ONE64, 16, d.code(), 0, s, 0);
  }

  public void vmovq(Mem d, Xmm s) {
    vector(P66, M0F, 0xd6, EVEX_W1 | NO_MASK, Tuple.ONE64, 16, s.code(), 0, d, 0);
  }

  public void vmovd(Xmm d, Mem s) {
    vector(P66, M0F, 0x6e, W0 | NO_MASK, Tuple.ONE32, 16, d.code(), 0, s, 0);
  }

  public void vmovd(Mem d, Xmm s) {
    vector(P66, M0F, 0x7e, W0 | NO_MASK, Tuple.ONE32, 16, s.code(), 0, d, 0);
  }

  public void vmovd(Xmm d, Gpr s) {
    gpr(P66, M0F, 0x6e, W0, d.code(), 0, s);
  }

  public void vmovd(Gpr d, Xmm s) {
    gpr(P66, M0F, 0x7e, W0, s.code(), 0, d);
  }

  public void vmovq(Xmm d, Gpr s) {
    gpr(P66, M0F, 0x6e, W1, d.code(), 0, s);
  }

  public void vmovq(Gpr d, Xmm s) {
    gpr(P66, M0F, 0x7e, W1, s.code(), 0, d);
  }

  public void vmovmskps(Gpr d, Vec s) {
    vector(NP, M0F, 0x50, W0 | VEX_ONLY, Tuple.FULL, s.bytes(), d.code(), 0, s, 0);
  }

  public void vpmovmskb(Gpr d, Vec s) {
    vector(P66, M0F, 0xd7, W0 | VEX_ONLY, Tuple.FULL, s.bytes(), d.code(), 0, s, 0);
  }

  // ---- float arithmetic

  public void vaddps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x58, W0, Tuple.FULL32, d, a, b);
  }

  public void vaddss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x58, W0, Tuple.ONE32, d, a, b);
  }

  public void vmulps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x59, W0, Tuple.FULL32, d, a, b);
  }

  public void vmulss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x59, W0, Tuple.ONE32, d, a, b);
  }

  public void vsubps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x5c, W0, Tuple.FULL32, d, a, b);
  }

  public void vsubss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x5c, W0, Tuple.ONE32, d, a, b);
  }

  public void vminps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x5d, W0, Tuple.FULL32, d, a, b);
  }

  public void vminss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x5d, W0, Tuple.ONE32, d, a, b);
  }

  public void vdivps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x5e, W0, Tuple.FULL32, d, a, b);
  }

  public void vdivss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x5e, W0, Tuple.ONE32, d, a, b);
  }

  public void vmaxps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x5f, W0, Tuple.FULL32, d, a, b);
  }

  public void vmaxss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x5f, W0, Tuple.ONE32, d, a, b);
  }

  public void vsqrtps(Vec d, Operand s) {
    two(NP, M0F, 0x51, W0, Tuple.FULL32, d, s);
  }

  public void vsqrtss(Xmm d, Xmm a, Operand b) {
    scalar(PF3, M0F, 0x51, W0, Tuple.ONE32, d, a, b);
  }

  public void vmaxpd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x5f, EVEX_W1, Tuple.FULL64, d, a, b);
  }

  public void vaddpd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x58, EVEX_W1, Tuple.FULL64, d, a, b);
  }

  public void vmulpd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x59, EVEX_W1, Tuple.FULL64, d, a, b);
  }

  public void vhaddps(Vec d, Vec a, Operand b) {
    three(PF2, M0F, 0x7c, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vfmadd132ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x98, W0, Tuple.FULL32, d, a, b);
  }

  public void vfmadd213ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xa8, W0, Tuple.FULL32, d, a, b);
  }

  public void vfmadd213ss(Xmm d, Xmm a, Operand b) {
    scalar(P66, M38, 0xa9, W0, Tuple.ONE32, d, a, b);
  }

  public void vfmadd231ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xb8, W0, Tuple.FULL32, d, a, b);
  }

  public void vfmadd231ss(Xmm d, Xmm a, Operand b) {
    scalar(P66, M38, 0xb9, W0, Tuple.ONE32, d, a, b);
  }

  public void vfmsub132ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x9a, W0, Tuple.FULL32, d, a, b);
  }

  public void vfmsub213ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xaa, W0, Tuple.FULL32, d, a, b);
  }

  public void vfmsub213ss(Xmm d, Xmm a, Operand b) {
    scalar(P66, M38, 0xab, W0, Tuple.ONE32, d, a, b);
  }

  public void vfmsub231ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xba, W0, Tuple.FULL32, d, a, b);
  }

  public void vfmsub231ss(Xmm d, Xmm a, Operand b) {
    scalar(P66, M38, 0xbb, W0, Tuple.ONE32, d, a, b);
  }

  public void vfnmadd132ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x9c, W0, Tuple.FULL32, d, a, b);
  }

  public void vfnmadd213ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xac, W0, Tuple.FULL32, d, a, b);
  }

  public void vfnmadd213ss(Xmm d, Xmm a, Operand b) {
    scalar(P66, M38, 0xad, W0, Tuple.ONE32, d, a, b);
  }

  public void vfnmadd231ps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xbc, W0, Tuple.FULL32, d, a, b);
  }

  public void vfnmadd231ss(Xmm d, Xmm a, Operand b) {
    scalar(P66, M38, 0xbd, W0, Tuple.ONE32, d, a, b);
  }

  public void vfmadd231pd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0xb8, W1, Tuple.FULL64, d, a, b);
  }

  public void vroundps(Vec d, Operand s, int imm) {
    two(P66, M3A, 0x08, W0 | VEX_ONLY, Tuple.FULL, d, s, imm);
  }

  public void vrndscaleps(Vec d, Operand s, int imm) {
    two(P66, M3A, 0x08, W0 | EVEX_ONLY, Tuple.FULL32, d, s, imm);
  }

  public void vscalefps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x2c, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b);
  }

  public void vrcp14ps(Vec d, Operand s) {
    two(P66, M38, 0x4c, W0 | EVEX_ONLY, Tuple.FULL32, d, s);
  }

  public void vrsqrt14ps(Vec d, Operand s) {
    two(P66, M38, 0x4e, W0 | EVEX_ONLY, Tuple.FULL32, d, s);
  }

  public void vandps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x54, W0, Tuple.FULL32, d, a, b);
  }

  public void vandnps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x55, W0, Tuple.FULL32, d, a, b);
  }

  public void vorps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x56, W0, Tuple.FULL32, d, a, b);
  }

  public void vxorps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x57, W0, Tuple.FULL32, d, a, b);
  }

  public void vcmpps(Vec d, Vec a, Operand b, int imm) {
    three(NP, M0F, 0xc2, W0 | VEX_ONLY, Tuple.FULL, d, a, b, imm);
  }

  public void vcmpps(Opmask d, Vec a, Operand b, int imm) {
    compare(NP, M0F, 0xc2, W0, Tuple.FULL32, d, a, b);
    emit(imm);
  }

  public void vpcmpd(Opmask d, Vec a, Operand b, int imm) {
    compare(P66, M3A, 0x1f, W0, Tuple.FULL32, d, a, b);
    emit(imm);
  }

  public void vpcmpud(Opmask d, Vec a, Operand b, int imm) {
    compare(P66, M3A, 0x1e, W0, Tuple.FULL32, d, a, b);
    emit(imm);
  }

  public void vpcmpb(Opmask d, Vec a, Operand b, int imm) {
    compare(P66, M3A, 0x3f, W0, Tuple.FULL, d, a, b);
    emit(imm);
  }

  public void vpcmpub(Opmask d, Vec a, Operand b, int imm) {
    compare(P66, M3A, 0x3e, W0, Tuple.FULL, d, a, b);
    emit(imm);
  }

  public void vpcmpuw(Opmask d, Vec a, Operand b, int imm) {
    compare(P66, M3A, 0x3e, W1, Tuple.FULL, d, a, b);
    emit(imm);
  }

  public void vptestmb(Opmask d, Vec a, Operand b) {
    compare(P66, M38, 0x26, W0, Tuple.FULL, d, a, b, 0);
  }

  public void vptestnmb(Opmask d, Vec a, Operand b) {
    compare(PF3, M38, 0x26, W0, Tuple.FULL, d, a, b, 0);
  }

  public void vptestmd(Opmask d, Vec a, Operand b) {
    compare(P66, M38, 0x27, W0, Tuple.FULL32, d, a, b, 0);
  }

  // ---- conversions

  public void vcvtdq2ps(Vec d, Operand s) {
    two(NP, M0F, 0x5b, W0, Tuple.FULL32, d, s);
  }

  public void vcvtps2pd(Vec d, Operand s) {
    widen(NP, M0F, 0x5a, W0, Tuple.HALF32, d, s, 2);
  }

  public void vcvtps2dq(Vec d, Operand s) {
    two(P66, M0F, 0x5b, W0, Tuple.FULL32, d, s);
  }

  public void vcvttps2dq(Vec d, Operand s) {
    two(PF3, M0F, 0x5b, W0, Tuple.FULL32, d, s);
  }

  public void vcvtph2ps(Vec d, Operand s) {
    widen(P66, M38, 0x13, W0, Tuple.HALF, d, s, 2);
  }

  public void vcvtps2ph(Operand d, Vec s, int imm) {
    narrow(P66, M3A, 0x1d, W0, Tuple.HALF, d, s, 2, 1);
    emit(imm);
  }

  public void vpmovsxbw(Vec d, Operand s) {
    widen(P66, M38, 0x20, W0, Tuple.HALF, d, s, 2);
  }

  public void vpmovsxbd(Vec d, Operand s) {
    widen(P66, M38, 0x21, W0, Tuple.QUARTER, d, s, 4);
  }

  public void vpmovsxwd(Vec d, Operand s) {
    widen(P66, M38, 0x23, W0, Tuple.HALF, d, s, 2);
  }

  public void vpmovzxbw(Vec d, Operand s) {
    widen(P66, M38, 0x30, W0, Tuple.HALF, d, s, 2);
  }

  public void vpmovzxbd(Vec d, Operand s) {
    widen(P66, M38, 0x31, W0, Tuple.QUARTER, d, s, 4);
  }

  public void vpmovzxwd(Vec d, Operand s) {
    widen(P66, M38, 0x33, W0, Tuple.HALF, d, s, 2);
  }

  public void vpmovzxdq(Vec d, Operand s) {
    widen(P66, M38, 0x35, W0, Tuple.HALF, d, s, 2);
  }

  public void vpmovdb(Operand d, Vec s) {
    narrow(PF3, M38, 0x31, W0 | EVEX_ONLY, Tuple.QUARTER, d, s, 4);
  }

  public void vpmovsdb(Operand d, Vec s) {
    narrow(PF3, M38, 0x21, W0 | EVEX_ONLY, Tuple.QUARTER, d, s, 4);
  }

  public void vpmovdw(Operand d, Vec s) {
    narrow(PF3, M38, 0x33, W0 | EVEX_ONLY, Tuple.HALF, d, s, 2);
  }

  public void vpmovwb(Operand d, Vec s) {
    narrow(PF3, M38, 0x30, W0 | EVEX_ONLY, Tuple.HALF, d, s, 2);
  }

  // ---- integer arithmetic

  public void vpaddb(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xfc, W0, Tuple.FULL, d, a, b);
  }

  public void vpaddw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xfd, W0, Tuple.FULL, d, a, b);
  }

  public void vpaddd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xfe, W0, Tuple.FULL32, d, a, b);
  }

  public void vpsubb(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xf8, W0, Tuple.FULL, d, a, b);
  }

  public void vpsubw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xf9, W0, Tuple.FULL, d, a, b);
  }

  public void vpsubd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xfa, W0, Tuple.FULL32, d, a, b);
  }

  public void vpmullw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xd5, W0, Tuple.FULL, d, a, b);
  }

  public void vpmulhw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xe5, W0, Tuple.FULL, d, a, b);
  }

  public void vpmaddwd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xf5, W0, Tuple.FULL, d, a, b);
  }

  public void vpminub(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xda, W0, Tuple.FULL, d, a, b);
  }

  public void vpmaxub(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xde, W0, Tuple.FULL, d, a, b);
  }

  public void vpminsw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xea, W0, Tuple.FULL, d, a, b);
  }

  public void vpmaxsw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xee, W0, Tuple.FULL, d, a, b);
  }

  public void vpacksswb(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x63, W0, Tuple.FULL, d, a, b);
  }

  public void vpackssdw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x6b, W0, Tuple.FULL32, d, a, b);
  }

  public void vpackuswb(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x67, W0, Tuple.FULL, d, a, b);
  }

  public void vpaddq(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xd4, EVEX_W1, Tuple.FULL64, d, a, b);
  }

  public void vpmaddubsw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x04, W0, Tuple.FULL, d, a, b);
  }

  public void vpmulld(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x40, W0, Tuple.FULL32, d, a, b);
  }

  public void vpmaxsd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x3d, W0, Tuple.FULL32, d, a, b);
  }

  public void vpminsd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x39, W0, Tuple.FULL32, d, a, b);
  }

  public void vpmaxsb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x3c, W0, Tuple.FULL, d, a, b);
  }

  public void vpminsb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x38, W0, Tuple.FULL, d, a, b);
  }

  public void vpackusdw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x2b, W0, Tuple.FULL32, d, a, b);
  }

  public void vpmulhrsw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x0b, W0, Tuple.FULL, d, a, b);
  }

  public void vpsignb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x08, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpsignw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x09, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpabsb(Vec d, Operand s) {
    two(P66, M38, 0x1c, W0, Tuple.FULL, d, s);
  }

  public void vpabsw(Vec d, Operand s) {
    two(P66, M38, 0x1d, W0, Tuple.FULL, d, s);
  }

  public void vpabsd(Vec d, Operand s) {
    two(P66, M38, 0x1e, W0, Tuple.FULL32, d, s);
  }

  public void vphaddd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x02, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vphaddw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x01, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpsadbw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xf6, W0 | NO_MASK, Tuple.FULL, d, a, b);
  }

  public void vpdpbusd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x50, W0, Tuple.FULL32, d, a, b);
  }

  public void vpdpbusds(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x51, W0, Tuple.FULL32, d, a, b);
  }

  public void vpdpwssd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x52, W0, Tuple.FULL32, d, a, b);
  }

  public void vpdpwssds(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x53, W0, Tuple.FULL32, d, a, b);
  }

  public void vdpbf16ps(Vec d, Vec a, Operand b) {
    three(PF3, M38, 0x52, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b);
  }

  public void vpcmpeqb(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x74, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpcmpeqw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x75, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpcmpeqd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x76, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpcmpgtb(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x64, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpcmpgtw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x65, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpcmpgtd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x66, W0 | VEX_ONLY, Tuple.FULL, d, a, b);
  }

  // ---- bits and shifts

  /** {@code vpand}, or {@code vpandd} in EVEX form. */
  public void vpand(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xdb, W0, Tuple.FULL32, d, a, b);
  }

  /** {@code vpandn}, or {@code vpandnd} in EVEX form. */
  public void vpandn(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xdf, W0, Tuple.FULL32, d, a, b);
  }

  /** {@code vpor}, or {@code vpord} in EVEX form. */
  public void vpor(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xeb, W0, Tuple.FULL32, d, a, b);
  }

  /** {@code vpxor}, or {@code vpxord} in EVEX form. */
  public void vpxor(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0xef, W0, Tuple.FULL32, d, a, b);
  }

  public void vpternlogd(Vec d, Vec a, Operand b, int imm) {
    three(P66, M3A, 0x25, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b, imm);
  }

  public void vpsrlw(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x71, W0, Tuple.FULL, 2, d, s, imm);
  }

  public void vpsraw(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x71, W0, Tuple.FULL, 4, d, s, imm);
  }

  public void vpsllw(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x71, W0, Tuple.FULL, 6, d, s, imm);
  }

  public void vpsrld(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x72, W0, Tuple.FULL, 2, d, s, imm);
  }

  public void vpsrad(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x72, W0, Tuple.FULL, 4, d, s, imm);
  }

  public void vpslld(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x72, W0, Tuple.FULL, 6, d, s, imm);
  }

  public void vpsrlq(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x73, EVEX_W1, Tuple.FULL, 2, d, s, imm);
  }

  public void vpsllq(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x73, EVEX_W1, Tuple.FULL, 6, d, s, imm);
  }

  public void vpsrldq(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x73, W0 | NO_MASK, Tuple.FULL, 3, d, s, imm);
  }

  public void vpslldq(Vec d, Vec s, int imm) {
    shift(P66, M0F, 0x73, W0 | NO_MASK, Tuple.FULL, 7, d, s, imm);
  }

  public void vpsrlvd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x45, W0, Tuple.FULL32, d, a, b);
  }

  public void vpsravd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x46, W0, Tuple.FULL32, d, a, b);
  }

  public void vpsllvd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x47, W0, Tuple.FULL32, d, a, b);
  }

  public void vpsllvw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x12, W1 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpsrlvw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x10, W1 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpmultishiftqb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x83, W1 | EVEX_ONLY, Tuple.FULL64, d, a, b);
  }

  // ---- shuffles, blends, inserts

  public void vpshufb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x00, W0, Tuple.FULL, d, a, b);
  }

  public void vpunpcklbw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x60, W0, Tuple.FULL, d, a, b);
  }

  public void vpunpcklwd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x61, W0, Tuple.FULL, d, a, b);
  }

  public void vpunpckldq(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x62, W0, Tuple.FULL32, d, a, b);
  }

  public void vpunpcklqdq(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x6c, EVEX_W1, Tuple.FULL64, d, a, b);
  }

  public void vpunpckhbw(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x68, W0, Tuple.FULL, d, a, b);
  }

  public void vpunpckhwd(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x69, W0, Tuple.FULL, d, a, b);
  }

  public void vpunpckhdq(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x6a, W0, Tuple.FULL32, d, a, b);
  }

  public void vpunpckhqdq(Vec d, Vec a, Operand b) {
    three(P66, M0F, 0x6d, EVEX_W1, Tuple.FULL64, d, a, b);
  }

  public void vunpcklps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x14, W0, Tuple.FULL32, d, a, b);
  }

  public void vunpckhps(Vec d, Vec a, Operand b) {
    three(NP, M0F, 0x15, W0, Tuple.FULL32, d, a, b);
  }

  public void vshufps(Vec d, Vec a, Operand b, int imm) {
    three(NP, M0F, 0xc6, W0, Tuple.FULL32, d, a, b, imm);
  }

  public void vpshuflw(Vec d, Operand s, int imm) {
    two(PF2, M0F, 0x70, W0, Tuple.FULL, d, s, imm);
  }

  public void vpshufd(Vec d, Operand s, int imm) {
    two(P66, M0F, 0x70, W0, Tuple.FULL32, d, s, imm);
  }

  public void vpermilps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x0c, W0, Tuple.FULL32, d, a, b);
  }

  public void vpermilps(Vec d, Operand s, int imm) {
    two(P66, M3A, 0x04, W0, Tuple.FULL32, d, s, imm);
  }

  public void vpermq(Vec d, Operand s, int imm) {
    checkWide(d);
    two(P66, M3A, 0x00, W1, Tuple.FULL64, d, s, imm);
  }

  public void vpalignr(Vec d, Vec a, Operand b, int imm) {
    three(P66, M3A, 0x0f, W0, Tuple.FULL, d, a, b, imm);
  }

  public void vpermd(Vec d, Vec a, Operand b) {
    checkWide(d);
    three(P66, M38, 0x36, W0, Tuple.FULL32, d, a, b);
  }

  public void vpermps(Vec d, Vec a, Operand b) {
    checkWide(d);
    three(P66, M38, 0x16, W0, Tuple.FULL32, d, a, b);
  }

  public void vpermb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x8d, W0 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpermw(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x8d, W1 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpermi2b(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x75, W0 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpermt2b(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x7d, W0 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpermi2d(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x76, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b);
  }

  public void vpermt2d(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x7e, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b);
  }

  public void vpermt2w(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x7d, W1 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpblendd(Vec d, Vec a, Operand b, int imm) {
    three(P66, M3A, 0x02, W0 | VEX_ONLY, Tuple.FULL, d, a, b, imm);
  }

  public void vpblendw(Vec d, Vec a, Operand b, int imm) {
    three(P66, M3A, 0x0e, W0 | VEX_ONLY, Tuple.FULL, d, a, b, imm);
  }

  public void vblendps(Vec d, Vec a, Operand b, int imm) {
    three(P66, M3A, 0x0c, W0 | VEX_ONLY, Tuple.FULL, d, a, b, imm);
  }

  public void vblendvps(Vec d, Vec a, Operand b, Vec choose) {
    three(P66, M3A, 0x4a, W0 | VEX_ONLY, Tuple.FULL, d, a, b, selector(d, choose));
  }

  public void vpblendvb(Vec d, Vec a, Operand b, Vec choose) {
    three(P66, M3A, 0x4c, W0 | VEX_ONLY, Tuple.FULL, d, a, b, selector(d, choose));
  }

  public void vpexpandb(Vec d, Operand s) {
    two(P66, M38, 0x62, W0 | EVEX_ONLY, Tuple.ONE8, d, s);
  }

  public void vpexpandw(Vec d, Operand s) {
    two(P66, M38, 0x62, W1 | EVEX_ONLY, Tuple.ONE16, d, s);
  }

  public void vexpandps(Vec d, Operand s) {
    two(P66, M38, 0x88, W0 | EVEX_ONLY, Tuple.ONE32, d, s);
  }

  public void vpcompressd(Operand d, Vec s) {
    narrow(P66, M38, 0x8b, W0 | EVEX_ONLY, Tuple.ONE32, d, s, 1);
  }

  public void vpblendmb(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x66, W0 | EVEX_ONLY, Tuple.FULL, d, a, b);
  }

  public void vpblendmd(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x64, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b);
  }

  public void vblendmps(Vec d, Vec a, Operand b) {
    three(P66, M38, 0x65, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b);
  }

  public void vinserti128(Ymm d, Ymm a, Operand b, int imm) {
    insert(P66, M3A, 0x38, W0 | VEX_ONLY, Tuple.FULL, d, a, b, 16);
    emit(imm);
  }

  public void vextracti128(Operand d, Ymm s, int imm) {
    extract(P66, M3A, 0x39, W0 | VEX_ONLY, Tuple.FULL, d, s, 16);
    emit(imm);
  }

  public void vinsertf128(Ymm d, Ymm a, Operand b, int imm) {
    insert(P66, M3A, 0x18, W0 | VEX_ONLY, Tuple.FULL, d, a, b, 16);
    emit(imm);
  }

  public void vextractf128(Operand d, Ymm s, int imm) {
    extract(P66, M3A, 0x19, W0 | VEX_ONLY, Tuple.FULL, d, s, 16);
    emit(imm);
  }

  public void vinserti64x4(Zmm d, Zmm a, Operand b, int imm) {
    insert(P66, M3A, 0x3a, W1 | EVEX_ONLY, Tuple.QUAD64, d, a, b, 32);
    emit(imm);
  }

  public void vextracti64x4(Operand d, Zmm s, int imm) {
    extract(P66, M3A, 0x3b, W1 | EVEX_ONLY, Tuple.QUAD64, d, s, 32);
    emit(imm);
  }

  public void vextractf64x4(Operand d, Zmm s, int imm) {
    extract(P66, M3A, 0x1b, W1 | EVEX_ONLY, Tuple.QUAD64, d, s, 32);
    emit(imm);
  }

  public void vinserti32x4(Vec d, Vec a, Operand b, int imm) {
    checkWide(d);
    insert(P66, M3A, 0x38, W0 | EVEX_ONLY, Tuple.QUAD32, d, a, b, 16);
    emit(imm);
  }

  public void vextracti32x4(Operand d, Vec s, int imm) {
    checkWide(s);
    extract(P66, M3A, 0x39, W0 | EVEX_ONLY, Tuple.QUAD32, d, s, 16);
    emit(imm);
  }

  public void vperm2i128(Vec d, Vec a, Operand b, int imm) {
    checkWide(d);
    three(P66, M3A, 0x46, W0 | VEX_ONLY, Tuple.FULL, d, a, b, imm);
  }

  public void vperm2f128(Vec d, Vec a, Operand b, int imm) {
    checkWide(d);
    three(P66, M3A, 0x06, W0 | VEX_ONLY, Tuple.FULL, d, a, b, imm);
  }

  public void vshufi32x4(Vec d, Vec a, Operand b, int imm) {
    checkWide(d);
    three(P66, M3A, 0x43, W0 | EVEX_ONLY, Tuple.FULL32, d, a, b, imm);
  }

  public void vpbroadcastb(Vec d, Operand s) {
    spread(P66, M38, 0x78, W0, Tuple.ONE8, d, s);
  }

  public void vpbroadcastw(Vec d, Operand s) {
    spread(P66, M38, 0x79, W0, Tuple.ONE16, d, s);
  }

  public void vpbroadcastd(Vec d, Operand s) {
    spread(P66, M38, 0x58, W0, Tuple.ONE32, d, s);
  }

  public void vbroadcastss(Vec d, Operand s) {
    spread(P66, M38, 0x18, W0, Tuple.ONE32, d, s);
  }

  public void vpbroadcastq(Vec d, Operand s) {
    spread(P66, M38, 0x59, EVEX_W1, Tuple.ONE64, d, s);
  }

  public void vpbroadcastd(Vec d, Gpr s) {
    vectorGpr(P66, M38, 0x7c, W0, d, s);
  }

  public void vbroadcasti128(Ymm d, Mem s) {
    vector(P66, M38, 0x5a, W0 | VEX_ONLY, Tuple.FULL, 32, d.code(), 0, s, 0);
  }

  public void vbroadcasti32x4(Vec d, Mem s) {
    checkWide(d);
    vector(P66, M38, 0x5a, W0 | EVEX_ONLY, Tuple.QUAD32, d.bytes(), d.code(), 0, s, 0);
  }

  public void vbroadcasti64x4(Zmm d, Mem s) {
    vector(P66, M38, 0x5b, W1 | EVEX_ONLY, Tuple.QUAD64, 64, d.code(), 0, s, 0);
  }

  public void vpinsrb(Xmm d, Xmm a, Gpr b, int imm) {
    gpr(P66, M3A, 0x20, W0, d.code(), a.code(), b);
    emit(imm);
  }

  public void vpinsrb(Xmm d, Xmm a, Mem b, int imm) {
    vector(P66, M3A, 0x20, W0 | NO_MASK, Tuple.ONE8, 16, d.code(), a.code(), b, 1);
    emit(imm);
  }

  public void vpinsrd(Xmm d, Xmm a, Gpr b, int imm) {
    gpr(P66, M3A, 0x22, W0, d.code(), a.code(), b);
    emit(imm);
  }

  public void vpinsrd(Xmm d, Xmm a, Mem b, int imm) {
    vector(P66, M3A, 0x22, W0 | NO_MASK, Tuple.ONE32, 16, d.code(), a.code(), b, 1);
    emit(imm);
  }

  public void vpinsrq(Xmm d, Xmm a, Gpr b, int imm) {
    gpr(P66, M3A, 0x22, W1, d.code(), a.code(), b);
    emit(imm);
  }

  public void vpinsrq(Xmm d, Xmm a, Mem b, int imm) {
    vector(P66, M3A, 0x22, W1 | NO_MASK, Tuple.ONE64, 16, d.code(), a.code(), b, 1);
    emit(imm);
  }

  public void vpextrb(Mem d, Xmm s, int imm) {
    vector(P66, M3A, 0x14, W0 | NO_MASK, Tuple.ONE8, 16, s.code(), 0, d, 1);
    emit(imm);
  }

  public void vpextrb(Gpr d, Xmm s, int imm) {
    gpr(P66, M3A, 0x14, W0, s.code(), 0, d);
    emit(imm);
  }

  public void vpextrw(Mem d, Xmm s, int imm) {
    vector(P66, M3A, 0x15, W0 | NO_MASK, Tuple.ONE16, 16, s.code(), 0, d, 1);
    emit(imm);
  }

  public void vpextrd(Mem d, Xmm s, int imm) {
    vector(P66, M3A, 0x16, W0 | NO_MASK, Tuple.ONE32, 16, s.code(), 0, d, 1);
    emit(imm);
  }

  public void vpextrd(Gpr d, Xmm s, int imm) {
    gpr(P66, M3A, 0x16, W0, s.code(), 0, d);
    emit(imm);
  }

  public void vpextrq(Mem d, Xmm s, int imm) {
    vector(P66, M3A, 0x16, W1 | NO_MASK, Tuple.ONE64, 16, s.code(), 0, d, 1);
    emit(imm);
  }

  public void vpextrq(Gpr d, Xmm s, int imm) {
    gpr(P66, M3A, 0x16, W1, s.code(), 0, d);
    emit(imm);
  }

  public void vpinsrw(Xmm d, Xmm a, Mem b, int imm) {
    vector(P66, M0F, 0xc4, W0 | NO_MASK, Tuple.ONE16, 16, d.code(), a.code(), b, 1);
    emit(imm);
  }

  public void vmaskmovps(Vec d, Vec choose, Mem s) {
    checkWidth(d, choose);
    vector(P66, M38, 0x2c, W0 | VEX_ONLY, Tuple.FULL, d.bytes(), d.code(), choose.code(), s, 0);
  }

  public void vmaskmovps(Mem d, Vec choose, Vec s) {
    checkWidth(s, choose);
    vector(P66, M38, 0x2e, W0 | VEX_ONLY, Tuple.FULL, s.bytes(), s.code(), choose.code(), d, 0);
  }

  public void vpmaskmovd(Vec d, Vec choose, Mem s) {
    checkWidth(d, choose);
    vector(P66, M38, 0x8c, W0 | VEX_ONLY, Tuple.FULL, d.bytes(), d.code(), choose.code(), s, 0);
  }

  public void vpmaskmovd(Mem d, Vec choose, Vec s) {
    checkWidth(s, choose);
    vector(P66, M38, 0x8e, W0 | VEX_ONLY, Tuple.FULL, s.bytes(), s.code(), choose.code(), d, 0);
  }

  public void vzeroupper() {
    plain(0xc5, 0xf8, 0x77);
  }

  // ---- masks

  public void kmovw(Opmask d, Gpr s) {
    vexRegister(NP, M0F, 0x92, false, 0, d.code(), 0, s.code());
  }

  public void kmovw(Gpr d, Opmask s) {
    vexRegister(NP, M0F, 0x93, false, 0, d.code(), 0, s.code());
  }

  public void kmovd(Opmask d, Gpr s) {
    vexRegister(PF2, M0F, 0x92, false, 0, d.code(), 0, s.code());
  }

  public void kmovd(Gpr d, Opmask s) {
    vexRegister(PF2, M0F, 0x93, false, 0, d.code(), 0, s.code());
  }

  public void kmovq(Opmask d, Gpr s) {
    vexRegister(PF2, M0F, 0x92, true, 0, d.code(), 0, s.code());
  }

  public void kmovq(Gpr d, Opmask s) {
    vexRegister(PF2, M0F, 0x93, true, 0, d.code(), 0, s.code());
  }

  public void kandw(Opmask d, Opmask a, Opmask b) {
    vexRegister(NP, M0F, 0x41, false, 1, d.code(), a.code(), b.code());
  }

  public void korw(Opmask d, Opmask a, Opmask b) {
    vexRegister(NP, M0F, 0x45, false, 1, d.code(), a.code(), b.code());
  }

  public void kxorw(Opmask d, Opmask a, Opmask b) {
    vexRegister(NP, M0F, 0x47, false, 1, d.code(), a.code(), b.code());
  }

  public void kortestw(Opmask a, Opmask b) {
    vexRegister(NP, M0F, 0x98, false, 0, a.code(), 0, b.code());
  }

  public void knotw(Opmask d, Opmask s) {
    vexRegister(NP, M0F, 0x44, false, 0, d.code(), 0, s.code());
  }

  // ---- AMX tiles

  public void ldtilecfg(Mem s) {
    vexMemory(NP, M38, 0x49, false, 0, 0, 0, s, false);
  }

  public void tilerelease() {
    plain(0xc4, 0xe2, 0x78, 0x49, 0xc0);
  }

  public void tilezero(Tmm d) {
    vexRegister(PF2, M38, 0x49, false, 0, d.code(), 0, 0);
  }

  public void tileloadd(Tmm d, Mem s) {
    vexMemory(PF2, M38, 0x4b, false, 0, d.code(), 0, s, true);
  }

  public void tileloaddt1(Tmm d, Mem s) {
    vexMemory(P66, M38, 0x4b, false, 0, d.code(), 0, s, true);
  }

  public void tilestored(Mem d, Tmm s) {
    vexMemory(PF3, M38, 0x4b, false, 0, s.code(), 0, d, true);
  }

  public void tdpbssd(Tmm d, Tmm a, Tmm b) {
    tileProduct(PF2, 0x5e, d, a, b);
  }

  public void tdpbsud(Tmm d, Tmm a, Tmm b) {
    tileProduct(PF3, 0x5e, d, a, b);
  }

  public void tdpbusd(Tmm d, Tmm a, Tmm b) {
    tileProduct(P66, 0x5e, d, a, b);
  }

  public void tdpbuud(Tmm d, Tmm a, Tmm b) {
    tileProduct(NP, 0x5e, d, a, b);
  }

  public void tdpbf16ps(Tmm d, Tmm a, Tmm b) {
    tileProduct(PF3, 0x5c, d, a, b);
  }

  // ---- general registers, 64 bits unless the name says 32

  public void add(Gpr d, Gpr s) {
    legacy(0, true, false, 0x1, s.code(), d, false);
  }

  public void add(Gpr d, Mem s) {
    legacy(0, true, false, 0x3, d.code(), s, 0, false);
  }

  public void add(Gpr d, int imm) {
    immediate(0, true, d, imm);
  }

  public void or(Gpr d, Gpr s) {
    legacy(0, true, false, 0x9, s.code(), d, false);
  }

  public void or(Gpr d, Mem s) {
    legacy(0, true, false, 0xb, d.code(), s, 0, false);
  }

  public void or(Gpr d, int imm) {
    immediate(1, true, d, imm);
  }

  public void and(Gpr d, Gpr s) {
    legacy(0, true, false, 0x21, s.code(), d, false);
  }

  public void and(Gpr d, Mem s) {
    legacy(0, true, false, 0x23, d.code(), s, 0, false);
  }

  public void and(Gpr d, int imm) {
    immediate(4, true, d, imm);
  }

  public void sub(Gpr d, Gpr s) {
    legacy(0, true, false, 0x29, s.code(), d, false);
  }

  public void sub(Gpr d, Mem s) {
    legacy(0, true, false, 0x2b, d.code(), s, 0, false);
  }

  public void sub(Gpr d, int imm) {
    immediate(5, true, d, imm);
  }

  public void xor(Gpr d, Gpr s) {
    legacy(0, true, false, 0x31, s.code(), d, false);
  }

  public void xor(Gpr d, Mem s) {
    legacy(0, true, false, 0x33, d.code(), s, 0, false);
  }

  public void xor(Gpr d, int imm) {
    immediate(6, true, d, imm);
  }

  public void cmp(Gpr d, Gpr s) {
    legacy(0, true, false, 0x39, s.code(), d, false);
  }

  public void cmp(Gpr d, Mem s) {
    legacy(0, true, false, 0x3b, d.code(), s, 0, false);
  }

  public void cmp(Gpr d, int imm) {
    immediate(7, true, d, imm);
  }

  public void add32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x1, s.code(), d, false);
  }

  public void add32(Gpr d, int imm) {
    immediate(0, false, d, imm);
  }

  public void and32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x21, s.code(), d, false);
  }

  public void and32(Gpr d, int imm) {
    immediate(4, false, d, imm);
  }

  public void sub32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x29, s.code(), d, false);
  }

  public void sub32(Gpr d, int imm) {
    immediate(5, false, d, imm);
  }

  public void xor32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x31, s.code(), d, false);
  }

  public void xor32(Gpr d, int imm) {
    immediate(6, false, d, imm);
  }

  public void cmp32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x39, s.code(), d, false);
  }

  public void cmp32(Gpr d, int imm) {
    immediate(7, false, d, imm);
  }

  public void mov(Gpr d, Gpr s) {
    legacy(0, true, false, 0x89, s.code(), d, false);
  }

  public void mov(Gpr d, Mem s) {
    legacy(0, true, false, 0x8b, d.code(), s, 0, false);
  }

  public void mov(Mem d, Gpr s) {
    legacy(0, true, false, 0x89, s.code(), d, 0, false);
  }

  public void mov32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x89, s.code(), d, false);
  }

  public void mov32(Gpr d, Mem s) {
    legacy(0, false, false, 0x8b, d.code(), s, 0, false);
  }

  public void mov32(Mem d, Gpr s) {
    legacy(0, false, false, 0x89, s.code(), d, 0, false);
  }

  public void mov16(Mem d, Gpr s) {
    legacy(0x66, false, false, 0x89, s.code(), d, 0, false);
  }

  public void mov8(Mem d, Gpr s) {
    legacy(0, false, false, 0x88, s.code(), d, 0, true);
  }

  public void movzx8(Gpr d, Mem s) {
    legacy(0, false, true, 0xb6, d.code(), s, 0, false);
  }

  public void movzx16(Gpr d, Mem s) {
    legacy(0, false, true, 0xb7, d.code(), s, 0, false);
  }

  public void movsx8(Gpr d, Mem s) {
    legacy(0, true, true, 0xbe, d.code(), s, 0, false);
  }

  public void movsxd(Gpr d, Mem s) {
    legacy(0, true, false, 0x63, d.code(), s, 0, false);
  }

  /**
   * {@code mov d, imm} in the shortest form: 32 bits zero-extended, 32 bits sign-extended, 64 bits.
   */
  public void mov(Gpr d, long imm) {
    if (imm >>> 32 == 0) {
      legacyShort(false, 0xb8, d);
      emit32((int) imm);
    } else if (imm == (int) imm) {
      legacy(0, true, false, 0xc7, 0, d, false);
      emit32((int) imm);
    } else {
      legacyShort(true, 0xb8, d);
      emit64(imm);
    }
  }

  public void lea(Gpr d, Mem s) {
    legacy(0, true, false, 0x8d, d.code(), s, 0, false);
  }

  public void test(Gpr a, Gpr b) {
    legacy(0, true, false, 0x85, b.code(), a, false);
  }

  public void imul(Gpr d, Gpr s) {
    legacy(0, true, true, 0xaf, d.code(), s, false);
  }

  public void imul(Gpr d, Gpr s, int imm) {
    legacy(0, true, false, isByte(imm) ? 0x6b : 0x69, d.code(), s, false);
    if (isByte(imm)) {
      emit(imm);
    } else {
      emit32(imm);
    }
  }

  public void shl(Gpr d, int imm) {
    shift(4, d, imm);
  }

  public void shr(Gpr d, int imm) {
    shift(5, d, imm);
  }

  public void sar(Gpr d, int imm) {
    shift(7, d, imm);
  }

  public void shl32(Gpr d, int imm) {
    shift32(4, d, imm);
  }

  public void shr32(Gpr d, int imm) {
    shift32(5, d, imm);
  }

  public void or32(Gpr d, Gpr s) {
    legacy(0, false, false, 0x9, s.code(), d, false);
  }

  public void inc(Gpr d) {
    legacy(0, true, false, 0xff, 0, d, false);
  }

  public void dec(Gpr d) {
    legacy(0, true, false, 0xff, 1, d, false);
  }

  public void neg(Gpr d) {
    legacy(0, true, false, 0xf7, 3, d, false);
  }

  public void popcnt(Gpr d, Gpr s) {
    legacy(0xf3, true, true, 0xb8, d.code(), s, false);
  }

  public void push(Gpr r) {
    legacyShort(false, 0x50, r);
  }

  public void pop(Gpr r) {
    legacyShort(false, 0x58, r);
  }

  /** Pushes registers in their order: what {@link #popAll} takes back. */
  public void pushAll(Gpr... registers) {
    for (Gpr r : registers) {
      push(r);
    }
  }

  /** Pops registers in the opposite order: the same ones that {@link #pushAll} pushed. */
  public void popAll(Gpr... registers) {
    for (int i = registers.length - 1; i >= 0; i--) {
      pop(registers[i]);
    }
  }

  public void cmov(Condition c, Gpr d, Gpr s) {
    legacy(0, true, true, 0x40 + c.ordinal(), d.code(), s, false);
  }

  // ---- control

  public void jmp(Label label) {
    jump(0xeb, new int[] {0xe9}, label, false);
  }

  public void jcc(Condition c, Label label) {
    jump(0x70 + c.ordinal(), new int[] {0x0f, 0x80 + c.ordinal()}, label, false);
  }

  /** A jump whose target is known to lie within 127 bytes. */
  public void jccShort(Condition c, Label label) {
    jump(0x70 + c.ordinal(), new int[0], label, true);
  }

  /** A jump whose target is known to lie within 127 bytes. */
  public void jmpShort(Label label) {
    jump(0xeb, new int[0], label, true);
  }

  public void ret() {
    plain(0xc3);
  }

  public void nop() {
    plain(0x90);
  }

  public void ud2() {
    plain(0x0f, 0x0b);
  }

  public void cpuid() {
    plain(0x0f, 0xa2);
  }

  public void xgetbv() {
    plain(0x0f, 0x01, 0xd0);
  }

  public void rdtsc() {
    plain(0x0f, 0x31);
  }

  public void prefetcht0(Mem m) {
    legacy(0, false, true, 0x18, 1, m, 0, false);
  }

  public void prefetcht1(Mem m) {
    legacy(0, false, true, 0x18, 2, m, 0, false);
  }

  public void prefetchnta(Mem m) {
    legacy(0, false, true, 0x18, 0, m, 0, false);
  }

  public void prefetchw(Mem m) {
    legacy(0, false, true, 0x0d, 1, m, 0, false);
  }

  // ---- forms

  private static void checkWidth(Vec d, Operand s) {
    if (s instanceof Vec v && v.bytes() != d.bytes()) {
      throw new IllegalArgumentException("widths differ: expected=" + d + " actual=" + v);
    }
  }

  private static void checkWide(Vec v) {
    if (v.bytes() < 32) {
      throw new IllegalArgumentException("needs at least 256 bits: register=" + v);
    }
  }

  private static void checkBytes(Operand s, int bytes) {
    if (s instanceof Vec v && v.bytes() != bytes) {
      throw new IllegalArgumentException(
          "width: expected=" + bytes + " bytes actual=" + v.bytes() + " register=" + v);
    }
  }

  private void three(int pp, int map, int op, int w, Tuple t, Vec d, Vec a, Operand b) {
    checkWidth(d, a);
    checkWidth(d, b);
    vector(pp, map, op, w, t, d.bytes(), d.code(), a.code(), b, 0);
  }

  private void three(int pp, int map, int op, int w, Tuple t, Vec d, Vec a, Operand b, int imm) {
    checkWidth(d, a);
    checkWidth(d, b);
    vector(pp, map, op, w, t, d.bytes(), d.code(), a.code(), b, 1);
    emit(imm);
  }

  private void two(int pp, int map, int op, int w, Tuple t, Vec d, Operand s) {
    checkWidth(d, s);
    vector(pp, map, op, w, t, d.bytes(), d.code(), 0, s, 0);
  }

  private void two(int pp, int map, int op, int w, Tuple t, Vec d, Operand s, int imm) {
    checkWidth(d, s);
    vector(pp, map, op, w, t, d.bytes(), d.code(), 0, s, 1);
    emit(imm);
  }

  private void store(int pp, int map, int op, int w, Tuple t, Mem d, Vec s) {
    vector(pp, map, op, w | NO_ZEROING, t, s.bytes(), s.code(), 0, d, 0);
  }

  private void scalar(int pp, int map, int op, int w, Tuple t, Xmm d, Xmm a, Operand b) {
    checkBytes(b, 16);
    vector(pp, map, op, w, t, 16, d.code(), a.code(), b, 0);
  }

  private void compare(int pp, int map, int op, int w, Tuple t, Opmask d, Vec a, Operand b) {
    compare(pp, map, op, w, t, d, a, b, 1);
  }

  private void compare(
      int pp, int map, int op, int w, Tuple t, Opmask d, Vec a, Operand b, int trailing) {
    checkWidth(a, b);
    vector(pp, map, op, w | EVEX_ONLY | NO_ZEROING, t, a.bytes(), d.code(), a.code(), b, trailing);
  }

  /** The source has a fraction of the destination's width, but at least 128 bits as a register. */
  private void widen(int pp, int map, int op, int w, Tuple t, Vec d, Operand s, int fraction) {
    checkBytes(s, Math.max(16, d.bytes() / fraction));
    vector(pp, map, op, w, t, d.bytes(), d.code(), 0, s, 0);
  }

  private void narrow(int pp, int map, int op, int w, Tuple t, Operand d, Vec s, int fraction) {
    narrow(pp, map, op, w, t, d, s, fraction, 0);
  }

  private void narrow(
      int pp, int map, int op, int w, Tuple t, Operand d, Vec s, int fraction, int trailing) {
    checkBytes(d, Math.max(16, s.bytes() / fraction));
    vector(pp, map, op, w | zeroing(d), t, s.bytes(), s.code(), 0, d, trailing);
  }

  /** Elements in memory cannot be zeroed. */
  private static int zeroing(Operand destination) {
    return destination instanceof Mem ? NO_ZEROING : 0;
  }

  private void insert(int pp, int map, int op, int w, Tuple t, Vec d, Vec a, Operand b, int bytes) {
    checkWidth(d, a);
    checkBytes(b, bytes);
    vector(pp, map, op, w, t, d.bytes(), d.code(), a.code(), b, 1);
  }

  private void extract(int pp, int map, int op, int w, Tuple t, Operand d, Vec s, int bytes) {
    checkBytes(d, bytes);
    vector(pp, map, op, w | zeroing(d), t, s.bytes(), s.code(), 0, d, 1);
  }

  private void spread(int pp, int map, int op, int w, Tuple t, Vec d, Operand s) {
    checkBytes(s, 16);
    vector(pp, map, op, w, t, d.bytes(), d.code(), 0, s, 0);
  }

  /** A shift by an immediate: the destination is in vvvv, ModRM.reg extends the opcode. */
  private void shift(int pp, int map, int op, int w, Tuple t, int ext, Vec d, Vec s, int imm) {
    checkWidth(d, s);
    vector(pp, map, op, w, t, d.bytes(), ext, d.code(), s, 1);
    emit(imm);
  }

  /** A 128-bit instruction with a general register in ModRM.rm. */
  private void gpr(int pp, int map, int op, int w, int reg, int vvvv, Gpr rm) {
    vector(pp, map, op, w | NO_MASK, Tuple.ONE32, 16, reg, vvvv, Xmm.of(rm.code()), 0);
  }

  private void vectorGpr(int pp, int map, int op, int w, Vec d, Gpr rm) {
    vector(pp, map, op, w | EVEX_ONLY, Tuple.ONE32, d.bytes(), d.code(), 0, Xmm.of(rm.code()), 0);
  }

  /** The register that chooses in a blend, as the immediate that names it. */
  private static int selector(Vec d, Vec choose) {
    checkWidth(d, choose);
    if (choose.code() > 15) {
      throw new IllegalArgumentException("no EVEX form: register=" + choose);
    }
    return choose.code() << 4;
  }

  private void tileProduct(int pp, int op, Tmm d, Tmm a, Tmm b) {
    if (d == a || d == b || a == b) {
      throw new IllegalArgumentException("tiles must differ: " + d + " " + a + " " + b);
    }
    vexRegister(pp, M38, op, false, 0, d.code(), b.code(), a.code());
  }

  private void immediate(int extension, boolean wide, Gpr d, int imm) {
    if (isByte(imm)) {
      legacy(0, wide, false, 0x83, extension, d, false);
      emit(imm);
    } else if (d == Gpr.RAX) {
      plain(wide ? new int[] {0x48, 8 * extension + 5} : new int[] {8 * extension + 5});
      emit32(imm);
    } else {
      legacy(0, wide, false, 0x81, extension, d, false);
      emit32(imm);
    }
  }

  private void shift32(int extension, Gpr d, int imm) {
    if (imm < 1 || imm > 31) {
      throw new IllegalArgumentException("shift: expected=[1,31] actual=" + imm);
    }
    legacy(0, false, false, imm == 1 ? 0xd1 : 0xc1, extension, d, false);
    if (imm > 1) {
      emit(imm);
    }
  }

  private void shift(int extension, Gpr d, int imm) {
    if (imm < 0 || imm > 63) {
      throw new IllegalArgumentException("shift: expected=[0,63] actual=" + imm);
    }
    if (imm == 1) {
      legacy(0, true, false, 0xd1, extension, d, false);
    } else {
      legacy(0, true, false, 0xc1, extension, d, false);
      emit(imm);
    }
  }
}
