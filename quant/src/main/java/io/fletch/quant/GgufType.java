package io.fletch.quant;

/** The type of a metadata value in a GGUF file (specs weights 1.1); the ordinal is its id. */
public enum GgufType {
  UINT8(1),
  INT8(1),
  UINT16(2),
  INT16(2),
  UINT32(4),
  INT32(4),
  FLOAT32(4),
  BOOL(1),
  STRING(8),
  ARRAY(12),
  UINT64(8),
  INT64(8),
  FLOAT64(8);

  private static final GgufType[] BY_ID = values();
  private final int minBytes;

  GgufType(int minBytes) {
    this.minBytes = minBytes;
  }

  /** The id in a file. */
  public int id() {
    return ordinal();
  }

  /** Bytes of a number; of a string or an array, the fewest that one can have. */
  int minBytes() {
    return minBytes;
  }

  /** Whether values are integers. */
  public boolean isInteger() {
    return switch (this) {
      case UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64 -> true;
      default -> false;
    };
  }

  /** Whether values are floating-point numbers. */
  public boolean isFloat() {
    return this == FLOAT32 || this == FLOAT64;
  }

  /** The type of that id, or null. */
  static GgufType byId(int id) {
    return id >= 0 && id < BY_ID.length ? BY_ID[id] : null;
  }
}
