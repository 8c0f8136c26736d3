package io.fletch.ffm.device;

import io.fletch.ffm.cuda.CudaDriver;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * How a tensor in device memory is cut into tiles for bulk copies (compute capability 9.0 on). 128
 * bytes of host memory, passed to kernels by value. One thread at a time.
 */
public final class TensorMap implements AutoCloseable {
  private static final int BYTES = 128;

  private final Arena arena = Arena.ofShared();
  private final MemorySegment segment = arena.allocate(BYTES, BYTES);
  private boolean closed;

  private TensorMap() {}

  /** Type of an element. */
  public enum Element {
    U8(1),
    U16(2),
    U32(4),
    F16(2),
    F32(4),
    BF16(2);

    private final int bytes;

    Element(int bytes) {
      this.bytes = bytes;
    }

    private int code() {
      return switch (this) {
        case U8 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_UINT8();
        case U16 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_UINT16();
        case U32 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_UINT32();
        case F16 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_FLOAT16();
        case F32 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_FLOAT32();
        case BF16 -> CudaDriver.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16();
      };
    }
  }

  /** How 16-byte pieces are exchanged in shared memory, by the bytes of a row of the tile. */
  public enum Swizzle {
    NONE,
    B32,
    B64,
    B128;

    private int code() {
      return switch (this) {
        case NONE -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_NONE();
        case B32 -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_32B();
        case B64 -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_64B();
        case B128 -> CudaDriver.CU_TENSOR_MAP_SWIZZLE_128B();
      };
    }
  }

  /**
   * Describes rows of a matrix; elements outside read as zero.
   *
   * @param rows number of rows
   * @param columns elements of a row
   * @param stride bytes from row to row, a multiple of 16
   * @param tileRows rows of a tile, up to 256
   * @param tileColumns elements of a row of a tile, up to 256
   * @throws CudaException if the driver refuses, for instance as the address is not aligned to 16
   */
  public static TensorMap matrix(
      DeviceMemory memory,
      long offset,
      Element element,
      long rows,
      long columns,
      long stride,
      int tileRows,
      int tileColumns,
      Swizzle swizzle) {
    memory.use();
    if (rows < 1 || columns < 1 || stride / element.bytes < columns) {
      throw new IllegalArgumentException(
          "matrix out of range: rows=" + rows + " columns=" + columns + " stride=" + stride);
    }
    long bytes = Math.addExact(Math.multiplyExact(rows - 1, stride), columns * element.bytes);
    long address = memory.range(offset, bytes);
    TensorMap map = new TensorMap();
    try (Arena arena = Arena.ofConfined()) {
      int status =
          CudaDriver.cuTensorMapEncodeTiled(
              map.segment,
              element.code(),
              2,
              MemorySegment.ofAddress(address),
              arena.allocateFrom(ValueLayout.JAVA_LONG, columns, rows),
              arena.allocateFrom(ValueLayout.JAVA_LONG, stride),
              arena.allocateFrom(ValueLayout.JAVA_INT, tileColumns, tileRows),
              arena.allocateFrom(ValueLayout.JAVA_INT, 1, 1),
              CudaDriver.CU_TENSOR_MAP_INTERLEAVE_NONE(),
              swizzle.code(),
              CudaDriver.CU_TENSOR_MAP_L2_PROMOTION_L2_256B(),
              CudaDriver.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE());
      if (status != Driver.SUCCESS) {
        throw Driver.failure(
            status,
            "cuTensorMapEncodeTiled",
            "address="
                + Driver.hex(address)
                + ", rows="
                + rows
                + ", columns="
                + columns
                + ", stride="
                + stride
                + ", tile="
                + tileRows
                + "x"
                + tileColumns,
            "");
      }
    } catch (RuntimeException e) {
      map.close();
      throw e;
    }
    return map;
  }

  MemorySegment segment() {
    if (closed) {
      throw new IllegalStateException("used after close: tensor map");
    }
    return segment;
  }

  /**
   * Frees the host memory.
   *
   * @throws IllegalStateException if already closed
   */
  @Override
  public void close() {
    if (closed) {
      throw new IllegalStateException("already closed: tensor map");
    }
    closed = true;
    arena.close();
  }
}
