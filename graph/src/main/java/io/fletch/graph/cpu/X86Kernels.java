package io.fletch.graph.cpu;

import io.fletch.ffm.CpuFeatures;
import io.fletch.ffm.ExecutableMemory;
import io.fletch.graph.Activation;
import io.fletch.graph.AttentionSpec;
import io.fletch.graph.Batch.RowStatistics;
import io.fletch.graph.KvCache;
import io.fletch.graph.RopeSpec;
import io.fletch.graph.cpu.x86.Isa;
import io.fletch.graph.cpu.x86.PackedLayout;
import io.fletch.graph.cpu.x86.TwoOfFourLayout;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.MemorySegment;
import java.util.Optional;

/**
 * Kernels in machine code that this process emits, for one instruction set. Results have the bits
 * of the scalar set.
 *
 * <p>What is not worth machine code goes to another set.
 */
final class X86Kernels implements Kernels {
  private final Isa isa;
  private final Kernels other;
  private final X86Elements elements;
  private final X86Attention attention;
  private final X86AttentionStates attentionStates;
  private final X86CodeAttention codeAttention;

  private X86Kernels(Isa isa, Kernels other) {
    this.isa = isa;
    this.other = other;
    this.elements = new X86Elements(isa);
    this.attention = new X86Attention(isa);
    this.attentionStates = new X86AttentionStates(isa);
    this.codeAttention = new X86CodeAttention(isa);
  }

  /** The set for an instruction set; empty where machine code or the instructions cannot run. */
  static Optional<Kernels> of(Isa isa, Kernels other) {
    return isa.supportedBy(CpuFeatures.host()) && ExecutableMemory.refusal().isEmpty()
        ? Optional.of(new X86Kernels(isa, other))
        : Optional.empty();
  }

  @Override
  public String name() {
    return "x86-" + isa.label();
  }

  @Override
  public Matmul matmul(TensorType type, int in) {
    return PackedLayout.supports(type)
        ? new X86Matmul(type, in, isa, false)
        : new X86FloatMatmul(type, in, isa);
  }

  @Override
  public Matmul matmulMapped(TensorType type, int in) {
    return PackedLayout.supports(type)
        ? new X86Matmul(type, in, isa, true)
        : new X86FloatMatmul(type, in, isa);
  }

  @Override
  public Matmul columnsMatmul(TensorType type, int in) {
    return new ColumnsMatmul(type, in, Optional.of(isa));
  }

  @Override
  public Optional<Matmul> codeColumnsMatmul(Tensor weight) {
    return CodeColumnsMatmul.supports(weight.type(), isa) && weight.bytes() > 0
        ? Optional.of(new CodeColumnsMatmul(weight, isa))
        : Optional.empty();
  }

  @Override
  public Matmul bitmapMatmul(SparseMatrix.Bitmap matrix) {
    return X86Sparse.of(matrix, isa, this);
  }

  @Override
  public Matmul bitmapMatmul(SparseMatrix.BitmapCodes matrix) {
    return new X86BitmapCodes(matrix, isa);
  }

  @Override
  public Matmul twoOfFourMatmul(SparseMatrix.TwoOfFour matrix) {
    return TwoOfFourLayout.supports(matrix.values().type())
        ? new X86TwoOfFour(matrix, isa, false)
        : X86Sparse.of(matrix, isa, this);
  }

  @Override
  public Matmul twoOfFourMapped(SparseMatrix.TwoOfFour matrix) {
    return TwoOfFourLayout.supports(matrix.values().type())
        ? new X86TwoOfFour(matrix, isa, true)
        : X86Sparse.of(matrix, isa, this);
  }

  @Override
  public long activationBytes(ActivationFormat format, int n) {
    return other.activationBytes(format, n);
  }

  @Override
  public void quantize(
      ActivationFormat format,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    elements.quantize(format, x, offset, n, dst, dstOffset);
  }

  @Override
  public void dequantize(
      TensorType type,
      MemorySegment src,
      long srcOffset,
      int n,
      float scale,
      MemorySegment dst,
      long dstOffset) {
    other.dequantize(type, src, srcOffset, n, scale, dst, dstOffset);
  }

  @Override
  public void rmsNorm(
      MemorySegment x,
      long offset,
      MemorySegment weight,
      int n,
      float eps,
      float scale,
      MemorySegment dst,
      long dstOffset) {
    elements.rmsNorm(x, offset, weight, n, eps, scale, dst, dstOffset);
  }

  @Override
  public void rope(
      RopeSpec.Style style,
      MemorySegment x,
      long offset,
      int headDim,
      MemorySegment table,
      long tableOffset,
      int pairs,
      MemorySegment dst,
      long dstOffset) {
    elements.rope(style, x, offset, headDim, table, tableOffset, pairs, dst, dstOffset);
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    elements.activate(activation, gate, gateOffset, up, upOffset, n, dst, dstOffset);
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment x,
      long offset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    elements.activate(activation, x, offset, n, dst, dstOffset);
  }

  @Override
  public void add(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      float scale,
      int n,
      MemorySegment dst,
      long dstOffset) {
    elements.add(a, aOffset, b, bOffset, scale, n, dst, dstOffset);
  }

  @Override
  public void accumulate(
      LowRankFactor b,
      long from,
      int n,
      MemorySegment h,
      long hOffset,
      MemorySegment y,
      long yOffset) {
    elements.accumulate(b, from, n, h, hOffset, y, yOffset);
  }

  @Override
  public void scale(
      MemorySegment x, long offset, float factor, int n, MemorySegment dst, long dstOffset) {
    elements.scale(x, offset, factor, n, dst, dstOffset);
  }

  @Override
  public void multiply(
      MemorySegment a,
      long aOffset,
      MemorySegment b,
      long bOffset,
      int n,
      MemorySegment dst,
      long dstOffset) {
    elements.multiply(a, aOffset, b, bOffset, n, dst, dstOffset);
  }

  @Override
  public void softCap(
      MemorySegment x, long offset, float cap, int n, MemorySegment dst, long dstOffset) {
    elements.softCap(x, offset, cap, n, dst, dstOffset);
  }

  @Override
  public long kvBytes(KvCache.Type type, int n) {
    return other.kvBytes(type, n);
  }

  @Override
  public void kvStore(
      KvCache.Type type, MemorySegment x, long offset, int n, MemorySegment kv, long kvOffset) {
    elements.kvStore(type, x, offset, n, kv, kvOffset);
  }

  @Override
  public int attentionScratch(AttentionSpec spec) {
    int codes = X86CodeAttention.supports(spec) ? X86CodeAttention.scratchFloats(spec) : 0;
    int floats = Math.max(codes, attention.scratchFloats(spec));
    return Math.max(floats, other.attentionScratch(spec));
  }

  @Override
  public void attention(AttentionSpec spec, AttentionTile tile, KvRun kv, MemorySegment scratch) {
    if (kv.type() == KvCache.Type.Q8_0 && X86CodeAttention.supports(spec)) {
      codeAttention.run(spec, tile, kv, scratch);
    } else if (X86Attention.supports(spec, kv.type())) {
      attention.run(spec, tile, kv, scratch);
    } else {
      other.attention(spec, tile, kv, scratch);
    }
  }

  @Override
  public void attentionMerge(AttentionSpec spec, MemorySegment states, long merged, long next) {
    if (X86AttentionStates.supports(spec)) {
      attentionStates.merge(spec, states, merged, next);
    } else {
      AttentionRows.merge(this, spec, states, merged, next);
    }
  }

  @Override
  public void attentionFinish(
      AttentionSpec spec, MemorySegment states, long state, MemorySegment out, long outOffset) {
    if (X86AttentionStates.supports(spec)) {
      attentionStates.finish(spec, states, state, out, outOffset);
    } else {
      AttentionRows.finish(this, spec, states, state, out, outOffset);
    }
  }

  @Override
  public int argmax(MemorySegment x, long offset, int n) {
    return elements.argmax(x, offset, n);
  }

  @Override
  public boolean statistics(MemorySegment x, long offset, int n, RowStatistics into) {
    X86Statistics.reduce(x, offset, n, elements.argmax(x, offset, n), into);
    return true;
  }
}
