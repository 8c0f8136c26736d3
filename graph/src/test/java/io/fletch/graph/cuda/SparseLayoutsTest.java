package io.fletch.graph.cuda;

import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.ptx.PtxKernel;
import io.fletch.graph.Graph;
import io.fletch.graph.Op;
import io.fletch.graph.TestGraphs;
import io.fletch.graph.Value;
import io.fletch.quant.LinearOp;
import io.fletch.quant.SparseEncoder;
import io.fletch.quant.SparseMatrix;
import io.fletch.quant.Tensor;
import io.fletch.quant.TensorType;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Sparse matrices on the device: their bytes, and their kernels under NVIDIA's assembler. */
class SparseLayoutsTest {
  private static List<SparseMatrix> matrices(TestGraphs graphs, int out, int in) {
    Tensor dense = graphs.masked("w", out, in, 0.5);
    List<SparseMatrix> all = new ArrayList<>();
    for (TensorType t :
        List.of(
            TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.Q4_0)) {
      if (!t.isQuantized()) {
        all.add(SparseEncoder.bitmap(dense, t, graphs.store()));
        all.add(SparseEncoder.block(dense, 1, 16, t, graphs.store()));
      }
      all.add(SparseEncoder.block(dense, 1, 32, t, graphs.store()));
    }
    all.add(SparseEncoder.bitmapCodes(dense, 8, graphs.store()));
    all.add(SparseEncoder.bitmapCodes(dense, 4, graphs.store()));
    return all;
  }

  /** Parts are padded, starts of rows take half of what they take in the file. */
  @Test
  void theDeviceHasNoMoreBytesThanTheFile() {
    try (TestGraphs graphs = new TestGraphs(3)) {
      for (SparseMatrix m : matrices(graphs, 33, 352)) {
        long device = SparseForm.of(m).bytes();
        assertTrue(device <= m.bytes() + 64, m.valueType() + ": " + device + " of " + m.bytes());
      }
    }
  }

  @Test
  void theAssemblerTakesAllKernels(@TempDir Path folder) throws Exception {
    int n = 0;
    StringBuilder text = new StringBuilder(PtxKernel.header());
    try (TestGraphs graphs = new TestGraphs(3)) {
      for (int in : new int[] {4096, 4128}) {
        for (SparseMatrix m : matrices(graphs, 2, in)) {
          Graph.Builder g = Graph.builder("sparse");
          Value x = g.embedding("x", graphs.matrix("e", TensorType.F32, 3, in), 1);
          LinearOp w = new LinearOp.Sparse(m);
          Value y = g.linear("y", x, w, Optional.empty(), Optional.empty());
          Op op = g.build(g.selectRows("selected", y)).ops().get(1);
          for (int rows : new int[] {1, 8}) {
            Control control = new Control(rows, 1, 0, 0, 0);
            SparseKernels kernels = new SparseKernels(new Emitter(control), control);
            String name = m.kind() + n++ + "_" + m.valueType() + "_of_" + in + "_rows_" + rows;
            text.append(kernels.sparse((Op.Linear) op, SparseForm.of(m)).text(name));
          }
        }
      }
    }
    Map<String, String> said = Assembler.assemble(text.toString(), folder);
    if (said.isEmpty()) {
      return;
    }
    Sass.kernels(folder.resolve("sm_90.cubin"))
        .forEach((name, code) -> System.out.println(name + " " + Sass.innermost(code)));
  }
}
