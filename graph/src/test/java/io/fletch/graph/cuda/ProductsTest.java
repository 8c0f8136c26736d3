package io.fletch.graph.cuda;

import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.graph.Gate;
import io.fletch.graph.Op;
import io.fletch.graph.Value.Rows;
import io.fletch.quant.TensorType;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Sizes of packed matrices, and what the assembler says of the products with them. */
class ProductsTest {
  private static final Pattern FUNCTION = Pattern.compile("Compiling entry function '([^']+)' for");
  private static final Pattern REGISTERS = Pattern.compile("Used (\\d+) registers");
  private static final Optional<Gate> GATE = Optional.of(new Gate(1, Gate.Unit.FFN));

  private static List<TensorType> types() {
    return Arrays.stream(TensorType.values()).filter(PackedMatrix::takes).toList();
  }

  private static Map<String, PtxKernel> kernels(TensorType t) {
    PackedMatrix m = PackedMatrix.of(t, 4096, 4096);
    Map<String, PtxKernel> all = new LinkedHashMap<>();
    Products one = new Products(new Control(1, 2, 4, 0, 0));
    all.put("skinny", one.skinny(m, true, GATE, Rows.BATCH));
    all.put("wide_64", new Products(new Control(64, 2, 4, 0, 0)).wide(m, true, GATE, Rows.LOGITS));
    all.put("wide", new Products(new Control(512, 2, 4, 0, 0)).wide(m, false, GATE, Rows.BATCH));
    for (Op.Embedding.Index index : Op.Embedding.Index.values()) {
      all.put("embedding_" + index, one.embedding(m, index, 2));
    }
    return all;
  }

  @Test
  void packedFormsAreNotMuchLargerThanTheFile() {
    for (TensorType t : types()) {
      long packed = PackedMatrix.of(t, 4096, 4096).bytes();
      double ratio = packed / (double) t.bytes(4096L * 4096);
      assertTrue(
          ratio >= 1 && ratio < 1.03 || t == TensorType.MXFP4 && ratio < 1.06, t + " " + ratio);
    }
  }

  @Test
  void theAssemblerTakesAllProducts(@TempDir Path folder) throws Exception {
    StringBuilder text = new StringBuilder(PtxKernel.header());
    for (TensorType t : types()) {
      kernels(t).forEach((name, k) -> text.append(k.text(name + "_" + t)));
    }
    Products p = new Products(new Control(8, 2, 4, 0, 0));
    text.append(p.split(4096, "f16", Rows.BATCH).text("split_f16"));
    text.append(p.split(4096, "bf16", Rows.LOGITS).text("split_bf16"));
    Assembler.assemble(text.toString(), folder).forEach(ProductsTest::report);
  }

  private static void report(String target, String output) {
    String kernel = "";
    List<String> all = new ArrayList<>();
    for (String line : output.lines().toList()) {
      Matcher function = FUNCTION.matcher(line);
      if (function.find()) {
        kernel = function.group(1);
      }
      Matcher registers = REGISTERS.matcher(line);
      if (registers.find()) {
        all.add(kernel + "=" + registers.group(1));
      }
    }
    System.out.println(target + ": registers " + String.join(" ", all) + ", none spills");
  }
}
