package io.fletch.tests;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.quant.ArrowWriter;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorStore;
import io.fletch.quant.TensorType;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.TreeMap;
import org.apache.arrow.flatbuf.Footer;
import org.apache.arrow.flatbuf.Message;
import org.apache.arrow.flatbuf.RecordBatch;
import org.apache.arrow.memory.ArrowBuf;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.RootAllocator;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.Float2Vector;
import org.apache.arrow.vector.Float4Vector;
import org.apache.arrow.vector.LargeVarBinaryVector;
import org.apache.arrow.vector.VectorLoader;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.complex.LargeListVector;
import org.apache.arrow.vector.ipc.message.ArrowRecordBatch;
import org.apache.arrow.vector.ipc.message.MessageSerializer;
import org.apache.arrow.vector.types.pojo.Schema;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A Fletch Arrow file as Arrow's own Java library reads it. */
class ArrowReaderTest {
  @TempDir Path folder;

  @Test
  void arrowReadsSchemaMetadataAndEveryTensor() throws Exception {
    Path path = folder.resolve("model.arrow");
    byte[] blocks = new byte[3 * 34];
    new SplittableRandom(1).nextBytes(blocks);
    float[] norm = {1, 2.5f, -3};
    try (TensorStore store = TensorStore.create()) {
      Tensor q = store.allocate("blk.0.ffn_up.weight", TensorType.Q8_0, 3, 32);
      q.segment().asByteBuffer().put(blocks);
      Tensor h = store.allocate("half", TensorType.F16, 2);
      h.segment().set(ValueLayout.JAVA_SHORT, 2, Float.floatToFloat16(0.5f));
      new ArrowWriter()
          .put("general.architecture", "llama")
          .tensor(q)
          .tensor(store.floats("output_norm.weight", norm, 3))
          .tensor(h)
          .write(path);
    }
    ByteBuffer file = ByteBuffer.wrap(Files.readAllBytes(path)).order(ByteOrder.LITTLE_ENDIAN);
    Footer footer = footer(file);
    Schema schema = Schema.convertSchema(footer.schema());
    assertEquals("1", schema.getCustomMetadata().get("fletch.version"));
    assertEquals(
        "{\"general.architecture\":\"llama\"}", schema.getCustomMetadata().get("fletch.metadata"));
    assertEquals(3, schema.getFields().size());
    assertEquals("Q8_0", schema.findField("blk.0.ffn_up.weight").getMetadata().get("fletch.type"));
    assertEquals(
        "[3,32]", schema.findField("blk.0.ffn_up.weight").getMetadata().get("fletch.shape"));

    try (BufferAllocator allocator = new RootAllocator();
        VectorSchemaRoot root = VectorSchemaRoot.create(schema, allocator)) {
      load(file, footer, root, allocator);
      assertEquals(1, root.getRowCount());
      LargeVarBinaryVector q = (LargeVarBinaryVector) root.getVector("blk.0.ffn_up.weight");
      assertArrayEquals(blocks, q.get(0));
      LargeListVector list = (LargeListVector) root.getVector("output_norm.weight");
      Float4Vector values = (Float4Vector) list.getDataVector();
      assertEquals(3, values.getValueCount());
      for (int i = 0; i < norm.length; i++) {
        assertEquals(norm[i], values.get(i));
      }
      LargeListVector halves = (LargeListVector) root.getVector("half");
      Float2Vector half = (Float2Vector) halves.getDataVector();
      assertEquals(2, half.getValueCount());
      assertEquals(0.5f, half.getValueAsFloat(1));
    }
  }

  private static Footer footer(ByteBuffer file) {
    int n = file.limit();
    int footerBytes = file.getInt(n - 10);
    return Footer.getRootAsFooter(slice(file, n - 10 - footerBytes, footerBytes));
  }

  /**
   * The only record batch of a file. Arrow's reader of whole files needs packages of the JDK that
   * are not open, so its parts are used.
   */
  private static void load(
      ByteBuffer file, Footer footer, VectorSchemaRoot root, BufferAllocator allocator)
      throws IOException {
    assertEquals(1, footer.recordBatchesLength());
    int start = Math.toIntExact(footer.recordBatches(0).offset());
    int metaBytes = footer.recordBatches(0).metaDataLength();
    int bodyBytes = Math.toIntExact(footer.recordBatches(0).bodyLength());
    Message message = Message.getRootAsMessage(slice(file, start + 8, metaBytes - 8));
    RecordBatch batch = (RecordBatch) message.header(new RecordBatch());
    ArrowBuf body = allocator.buffer(bodyBytes);
    body.setBytes(0, file.array(), start + metaBytes, bodyBytes);
    try (ArrowRecordBatch read = MessageSerializer.deserializeRecordBatch(batch, body)) {
      new VectorLoader(root).load(read);
    }
  }

  /** Every shard is a file of its own, with sparse matrices among its tensors. */
  @Test
  void arrowReadsShards() throws Exception {
    List<Path> shards;
    Map<String, byte[]> expected = new TreeMap<>();
    try (TensorStore store = TensorStore.create()) {
      SplittableRandom random = new SplittableRandom(2);
      ArrowWriter writer = new ArrowWriter().put("general.architecture", "llama");
      for (int layer = 0; layer < 3; layer++) {
        float[] w = new float[16 * 64];
        for (int i = 0; i < w.length; i++) {
          w[i] = i % 4 < 2 ? random.nextFloat() - 0.5f : 0;
        }
        String stem = "blk." + layer + ".ffn_up";
        Tensor dense = store.floats(stem + ".weight", w, 16, 64);
        List<Tensor> tensors = new ArrayList<>(List.of(dense));
        tensors.addAll(SparseEncoder.twoOfFour(dense, TensorType.Q4_0, store).tensors());
        tensors.addAll(SparseEncoder.bitmapCodes(dense, 4, store).tensors());
        for (Tensor t : tensors) {
          if (expected.putIfAbsent(t.name(), bytes(t)) == null) {
            writer.tensor(t);
          }
        }
      }
      shards = writer.writeSplit(folder.resolve("m.arrow"), 5000);
    }
    assertTrue(shards.size() > 2, shards.toString());
    Map<String, byte[]> actual = new TreeMap<>();
    for (int i = 0; i < shards.size(); i++) {
      ByteBuffer file =
          ByteBuffer.wrap(Files.readAllBytes(shards.get(i))).order(ByteOrder.LITTLE_ENDIAN);
      Footer footer = footer(file);
      Schema schema = Schema.convertSchema(footer.schema());
      Map<String, String> metadata = schema.getCustomMetadata();
      assertEquals(Integer.toString(i), metadata.get("fletch.split.no"));
      assertEquals(Integer.toString(shards.size()), metadata.get("fletch.split.count"));
      try (BufferAllocator allocator = new RootAllocator();
          VectorSchemaRoot root = VectorSchemaRoot.create(schema, allocator)) {
        load(file, footer, root, allocator);
        assertEquals(1, root.getRowCount());
        for (FieldVector vector : root.getFieldVectors()) {
          ArrowBuf data =
              vector instanceof LargeListVector list
                  ? list.getDataVector().getDataBuffer()
                  : vector.getDataBuffer();
          byte[] bytes = new byte[expected.get(vector.getName()).length];
          data.getBytes(0, bytes);
          assertTrue(actual.put(vector.getName(), bytes) == null, vector.getName());
        }
      }
    }
    assertEquals(expected.keySet(), actual.keySet());
    expected.forEach((name, bytes) -> assertArrayEquals(bytes, actual.get(name), name));
  }

  private static byte[] bytes(Tensor t) {
    return t.segment().toArray(ValueLayout.JAVA_BYTE);
  }

  private static ByteBuffer slice(ByteBuffer file, int from, int n) {
    return file.slice(from, n).order(ByteOrder.LITTLE_ENDIAN);
  }
}
