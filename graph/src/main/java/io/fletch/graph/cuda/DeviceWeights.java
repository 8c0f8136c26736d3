package io.fletch.graph.cuda;

import io.fletch.ffm.device.CudaContext;
import io.fletch.ffm.device.CudaStream;
import io.fletch.ffm.device.DeviceMemory;
import io.fletch.ffm.device.PinnedMemory;
import io.fletch.graph.Graph;
import io.fletch.graph.GraphException;
import io.fletch.graph.Op;
import io.fletch.graph.RopeSpec;
import io.fletch.quant.Dequantizer;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;

/**
 * The tensors of a graph in one block of device memory. Matrices of types that tensor cores take
 * are packed ({@link PackedMatrix}); all others become float32, exactly. Used by the compiling
 * thread.
 */
final class DeviceWeights {
  private static final int STAGING = 4 << 20;
  private static final int ALIGNMENT = 256;

  private record Part(
      Object source, TensorType type, Optional<PackedMatrix> packed, long at, long bytes) {}

  private final Map<Object, Part> parts = new IdentityHashMap<>();
  private final List<Part> order = new ArrayList<>();
  private long bytes;
  private DeviceMemory memory;

  /** Plans the block; refuses what has no kernel. */
  DeviceWeights(Graph graph) {
    for (Op op : graph.ops()) {
      switch (op) {
        case Op.Embedding o -> matrix(o.table());
        case Op.RmsNorm o -> floats(o.weight());
        case Op.LayerNorm o -> {
          floats(o.weight());
          o.bias().ifPresent(this::floats);
        }
        case Op.Linear o -> {
          switch (o.weight()) {
            case LinearOp.Sparse s -> {
              SparseMatrix m = s.matrix();
              Optional<PackedMatrix> packed = PackedMatrix.of(m);
              long size = packed.map(PackedMatrix::bytes).orElseGet(() -> SparseForm.of(m).bytes());
              put(m, packed.isPresent() ? m.values().type() : TensorType.F32, packed, size);
            }
            case LinearOp.BlockDiagonal b -> plain(b.blocks());
            default -> matrix(dense(o));
          }
          o.bias().ifPresent(this::floats);
        }
        case Op.Rope o -> {
          float[] frequencies = o.spec().inverseFrequency();
          put(o.spec(), TensorType.F32, 4L * frequencies.length);
        }
        case Op.Gather o -> put(o.columns(), TensorType.I32, 4 * o.columns().elements());
        case Op.Route o -> {
          if (o.spec().experts() > ExpertKernels.MAX_EXPERTS) {
            throw new GraphException(
                o.out().name()
                    + ": experts on a GPU: expected<="
                    + ExpertKernels.MAX_EXPERTS
                    + " actual="
                    + o.spec().experts());
          }
          o.bias().ifPresent(this::floats);
        }
        case Op.ExpertLinear o -> {
          o.experts().forEach(this::plain);
          // Where the matrices lie.
          put(o.experts(), TensorType.I64, 8L * o.experts().size());
        }
        case Op.Mix o -> {}
        case Op.Input o -> {}
        case Op.KvStore o -> {}
        case Op.Attention o -> {}
        case Op.Activate o -> {}
        case Op.Add o -> {}
        case Op.Replace o -> {}
        case Op.KeepLargest o -> {}
        case Op.Adapt o -> {}
        case Op.Scale o -> {}
        case Op.Affine o -> {
          floats(o.factors());
          o.bias().ifPresent(this::floats);
        }
        case Op.SoftCap o -> {}
        case Op.Slice o -> {}
        case Op.SelectRows o -> {}
        case Op.SkipSimilar o -> {}
        case Op.RouteUnit o -> {}
      }
    }
  }

  /** The matrix of a product. */
  static Tensor dense(Op.Linear op) {
    if (op.weight() instanceof LinearOp.Dense d) {
      return d.weight();
    }
    throw new GraphException(
        "the CUDA backend has no kernel for "
            + op.weight().getClass().getSimpleName()
            + " matrices: "
            + op.out().name());
  }

  /** The packed form of a matrix, if its type has one; the others become float32. */
  static Optional<PackedMatrix> packed(Tensor matrix) {
    return PackedMatrix.takes(matrix.type())
        ? Optional.of(PackedMatrix.of(matrix.type(), matrix.rows(), matrix.cols()))
        : Optional.empty();
  }

  private void matrix(Tensor t) {
    Optional<PackedMatrix> packed = packed(t);
    if (packed.isPresent()) {
      put(t, t.type(), packed, packed.get().bytes());
    } else {
      floats(t);
    }
  }

  /** The type of a matrix of an expert or of blocks: as stored, if kernels read it so. */
  static TensorType plainType(Tensor matrix) {
    return Emitter.isNative(matrix.type()) ? matrix.type() : TensorType.F32;
  }

  private void plain(Tensor t) {
    TensorType type = plainType(t);
    put(t, type, type == t.type() ? t.bytes() : 4 * t.elements());
  }

  private void floats(Tensor t) {
    put(t, TensorType.F32, 4 * t.elements());
  }

  private void put(Object source, TensorType type, long size) {
    put(source, type, Optional.empty(), size);
  }

  private void put(Object source, TensorType type, Optional<PackedMatrix> packed, long size) {
    Part there = parts.get(source);
    if (there != null) {
      if (there.type() != type || there.packed().isPresent() != packed.isPresent()) {
        throw new GraphException("a tensor is used as a vector and as a matrix: " + source);
      }
      return;
    }
    Part part = new Part(source, type, packed, bytes, size);
    parts.put(source, part);
    order.add(part);
    bytes = (bytes + size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }

  /** Bytes on the device. */
  long bytes() {
    return bytes;
  }

  /** Takes the block and fills it through pinned memory; the caller closes the block. */
  DeviceMemory load(CudaContext context, CudaStream stream, CudaBackend.Progress progress) {
    memory = context.allocate(bytes);
    try (PinnedMemory staging = context.allocatePinned(STAGING)) {
      long done = 0;
      for (Part part : order) {
        load(part, staging.segment(), stream);
        done += part.bytes();
        progress.loaded(Math.min(done, bytes), bytes);
      }
    } catch (RuntimeException | Error e) {
      memory.close();
      throw e;
    }
    progress.loaded(bytes, bytes);
    return memory;
  }

  private void load(Part part, MemorySegment staging, CudaStream stream) {
    if (part.source() instanceof RopeSpec spec) {
      upload(MemorySegment.ofArray(spec.inverseFrequency()), part.at(), staging, stream);
      return;
    }
    if (part.packed().isPresent()) {
      pack(part.source(), part.packed().get(), part.at(), staging, stream);
      return;
    }
    if (part.source() instanceof SparseMatrix m) {
      try (Arena arena = Arena.ofConfined()) {
        upload(SparseForm.of(m).fill(m, arena), part.at(), staging, stream);
      }
      return;
    }
    if (part.source() instanceof List<?> matrices) {
      long[] at = matrices.stream().mapToLong(this::address).toArray();
      upload(MemorySegment.ofArray(at), part.at(), staging, stream);
      return;
    }
    Tensor t = (Tensor) part.source();
    if (t.type() == part.type()) {
      upload(t.segment().asSlice(0, part.bytes()), part.at(), staging, stream);
    } else if (t.rank() == 1) {
      upload(MemorySegment.ofArray(Dequantizer.toFloats(t)), part.at(), staging, stream);
    } else {
      float[] row = new float[Math.toIntExact(t.cols())];
      for (long r = 0; r < t.rows(); r++) {
        Dequantizer.row(t, r, row, 0);
        upload(MemorySegment.ofArray(row), part.at() + 4 * r * row.length, staging, stream);
      }
    }
  }

  /** Packs as many tiles as the staging memory holds, on all processors, and uploads them. */
  private void pack(
      Object matrix, PackedMatrix packed, long at, MemorySegment staging, CudaStream stream) {
    int size = packed.tileBytes();
    if (size > staging.byteSize()) {
      byte[] one = new byte[size];
      for (int tile = 0; tile < packed.tiles(); tile++) {
        packed.pack(matrix, tile, one);
        upload(MemorySegment.ofArray(one), at + (long) tile * size, staging, stream);
      }
      return;
    }
    int most = Math.toIntExact(staging.byteSize() / size);
    for (int first = 0; first < packed.tiles(); first += most) {
      int n = Math.min(most, packed.tiles() - first);
      int start = first;
      IntStream.range(0, n)
          .parallel()
          .forEach(i -> {
            byte[] one = new byte[size];
            packed.pack(matrix, start + i, one);
            MemorySegment.copy(one, 0, staging, ValueLayout.JAVA_BYTE, (long) i * size, size);
          });
      stream.upload(staging.asSlice(0, (long) n * size), memory, at + (long) first * size);
      // The staging buffer is written again.
      stream.synchronize();
    }
  }

  private void upload(MemorySegment from, long at, MemorySegment staging, CudaStream stream) {
    for (long done = 0; done < from.byteSize(); done += staging.byteSize()) {
      long n = Math.min(staging.byteSize(), from.byteSize() - done);
      MemorySegment.copy(from, ValueLayout.JAVA_BYTE, done, staging, ValueLayout.JAVA_BYTE, 0, n);
      stream.upload(staging.asSlice(0, n), memory, at + done);
      // The staging buffer is written again.
      stream.synchronize();
    }
  }

  /** Where a tensor or the table of a rotation lies. */
  long address(Object source) {
    return memory.address() + parts.get(source).at();
  }
}
