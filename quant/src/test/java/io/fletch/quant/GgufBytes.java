package io.fletch.quant;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/** Builds GGUF files field by field, legal or not, for tests of the reader. */
final class GgufBytes {
  private final LittleEndianBytes out = new LittleEndianBytes();
  private long tensorCount;

  static GgufBytes start(long tensors, long entries) {
    return start(GgufReader.MAGIC, 3, tensors, entries);
  }

  static GgufBytes start(int magic, int version, long tensors, long entries) {
    GgufBytes result = new GgufBytes();
    result.out.u32(magic).u32(version).u64(tensors).u64(entries);
    result.tensorCount = tensors;
    return result;
  }

  /** Key and type; the value follows through {@link #raw()}. */
  GgufBytes key(String key, int type) {
    out.string(key).u32(type);
    return this;
  }

  LittleEndianBytes raw() {
    return out;
  }

  GgufBytes u32(String key, int value) {
    key(key, 4).out.u32(value);
    return this;
  }

  GgufBytes u16(String key, int value) {
    key(key, 2).out.u16(value);
    return this;
  }

  /** A tensor info; axes as in the file, fastest first. */
  GgufBytes tensor(String name, int type, long offset, long... axes) {
    out.string(name).u32(axes.length);
    for (long axis : axes) {
      out.u64(axis);
    }
    out.u32(type).u64(offset);
    return this;
  }

  /** Pads and appends zeros as data. */
  byte[] data(int bytes) {
    if (tensorCount > 0) {
      out.bytes(new byte[(int) (-out.size() & 31)]);
    }
    return out.bytes(new byte[bytes]).toBytes();
  }

  static GgufReader.Header read(byte[] file) {
    return GgufReader.read(Path.of("test.gguf"), MemorySegment.ofArray(file));
  }

  /** A small legal file with every kind of field; returns its bytes. */
  static byte[] sample(Path folder) {
    Path path = folder.resolve("sample.gguf");
    try (TensorStore store = TensorStore.create()) {
      Tensor q = store.allocate("q", TensorType.Q4_K, 2, 256);
      q.segment().fill((byte) 0x21);
      GgufWriter writer =
          new GgufWriter()
              .put("general.architecture", "llama")
              .put("general.alignment", 64)
              .put("u8", GgufType.UINT8, 200)
              .put("i8", GgufType.INT8, -100)
              .put("u16", GgufType.UINT16, 60000)
              .put("i16", GgufType.INT16, -30000)
              .put("i32", GgufType.INT32, -5)
              .put("u64", GgufType.UINT64, 1L << 60)
              .put("i64", GgufType.INT64, Long.MIN_VALUE)
              .put("f32", 0.1f)
              .put("f64", GgufType.FLOAT64, 0.1)
              .put("bool", true);
      for (GgufType type : GgufType.values()) {
        switch (type) {
          case STRING -> writer.putArray("strings", type, List.of("a", "", "ü", new byte[] {-1}));
          case BOOL -> writer.putArray("bools", type, List.of(true, false));
          case ARRAY -> writer.putArray("none", GgufType.UINT8, List.of());
          default -> writer.putArray("array." + type, type, List.of(1, 2, 3));
        }
      }
      writer
          .add(q)
          .add(store.floats("f", new float[] {1, 2, 3, 4, 5, 6}, 1, 2, 1, 3))
          .add(store.allocate("scalar", TensorType.F16))
          .add(store.allocate("empty", TensorType.F32, 0, 7))
          .write(path);
      return Files.readAllBytes(path);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
