package io.fletch.tests.softgpu;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.ffm.device.CudaException;
import io.fletch.ffm.device.LaunchConfig;
import org.junit.jupiter.api.Test;

/** What kernels must not do is found, and the message says where. */
class PtxFaultTest {
  private static final String DECLARATIONS =
      ".reg .b32 %a, %b, %r; .reg .b64 %x; .reg .pred %p;"
          + ".shared .align 16 .b8 buffer[64]; .shared .align 8 .b64 bar;";

  private static GpuFault fault(String body, LaunchConfig config, String... parts) {
    String ptx = Bench.kernel(DECLARATIONS, body);
    GpuFault f = assertThrows(GpuFault.class, () -> Bench.run(ptx, config, new int[8], 8), body);
    for (String part : parts) {
      assertTrue(f.getMessage().contains(part), "missing " + part + " in " + f.getMessage());
    }
    assertTrue(f.getMessage().startsWith("kernel k, line "), f.getMessage());
    return f;
  }

  private static GpuFault fault(String body, String... parts) {
    return fault(body, LaunchConfig.of(1, 32), parts);
  }

  @Test
  void globalBounds() {
    GpuFault f =
        fault(
            "mul.wide.u32 %x, %t, 4; add.u64 %x, %x, %out; st.global.u32 [%x], %t;",
            "out of bounds",
            "thread 8,0,0",
            "st.global.u32 [%x], %t",
            "0 bytes past the end of a block of 32 bytes");
    assertEquals(700, f.code());
    fault("ld.global.u32 %a, [%in-4];", "out of bounds");
    fault("mov.u64 %x, 16; ld.global.u32 %a, [%x];", "out of bounds", "0x10");
    fault("ld.global.v4.u32 {%a, %b, %r, _}, [%in+32];", "out of bounds");
  }

  @Test
  void misalignment() {
    assertEquals(716, fault("ld.global.u32 %a, [%in+2];", "misaligned").code());
    fault("ld.global.v2.u32 {%a, %b}, [%in+4];", "misaligned", "bytes=8");
    fault("mov.u32 %r, buffer; st.shared.u32 [%r+1], %t;", "misaligned");
  }

  @Test
  void sharedMemory() {
    fault("mov.u32 %r, buffer; ld.shared.u32 %a, [%r];", "shared memory that was not written");
    fault("mov.u32 %r, buffer; st.shared.u32 [%r+80], %t;", "out of bounds", "of 80");
    fault("mov.u32 %r, 0; st.shared.u32 [%r], %t;", "out of bounds");
    fault(
        "mov.u32 %r, buffer; cp.async.ca.shared.global [%r], [%in], 16; cp.async.commit_group;"
            + "ld.shared.u32 %a, [%r];",
        "whose copy was not waited for");
  }

  @Test
  void unwrittenRegisters() {
    fault("add.u32 %a, %b, 1;", "reads a register that was not written");
    fault("@%p mov.u32 %a, 1;", "guard predicate");
    fault(
        "setp.lt.u32 %p, %t, 3; @%p mov.u32 %a, 1; add.u32 %b, %a, 1;",
        "reads a register", "thread 3,0,0");
  }

  @Test
  void barriers() {
    fault(
        "setp.lt.u32 %p, %t, 5; @%p bra SKIP; bar.sync 0; SKIP: bar.sync 0;", "divergent barrier");
    fault("setp.lt.u32 %p, %t, 5; @%p bar.sync 0;", "divergent barrier");
    fault(
        "setp.lt.u32 %p, %t, 32; @%p bra SKIP; bar.sync 1; SKIP:  bar.sync 0;",
        LaunchConfig.of(1, 64), "waits forever");
    fault(
        "setp.lt.u32 %p, %t, 5; @%p bra SKIP; bar.warp.sync 0xffffffff; SKIP: "
            + "bar.warp.sync 0xffffffff;",
        "wait for each other at different places");
  }

  @Test
  void warpInstructions() {
    fault(
        "setp.lt.u32 %p, %t, 5; @%p shfl.sync.bfly.b32 %a, %t, 1, 0x1f, 0xffffffff;",
        "skips the instruction");
    fault(
        "setp.lt.u32 %p, %t, 2; @%p bra IN; bra OUT; IN: "
            + "shfl.sync.idx.b32 %a, %t, 5, 0x1f, 3; OUT:",
        "reads lane 5 that does not take part");
    fault(
        "shfl.sync.bfly.b32 %a, %t, 16, 0x1f, 0xffffffff;",
        LaunchConfig.of(1, 20), "does not take part");
  }

  @Test
  void transactionBarriers() {
    fault("mov.u32 %r, bar; mbarrier.arrive.shared.b64 %x, [%r];", "no mbarrier was initialised");
    fault(
        "mov.u32 %r, bar; setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared.b64 [%r], 1;"
            + "bar.sync 0; mbarrier.arrive.shared.b64 %x, [%r], 2;",
        "more arrivals");
  }

  private static void refused(String body, String... parts) {
    String ptx = Bench.kernel(DECLARATIONS + ".reg .f32 %f; .reg .b16 %h;", body);
    CudaException e =
        assertThrows(CudaException.class, () -> Bench.run(ptx, 32, new int[8], 8), body);
    assertEquals("CUDA_ERROR_INVALID_PTX", e.error());
    for (String part : parts) {
      assertTrue(e.getMessage().contains(part), "missing " + part + " in " + e.getMessage());
    }
  }

  @Test
  void wrongTextIsRefusedWithItsLine() {
    refused("frobnicate.b32 %a, %b;", "unknown instruction", "frobnicate", "line ");
    refused("add.u32 %a, %x, 1;", "type width", "%x");
    refused("add.f32 %f, %f, %h;", "type width");
    refused("add.f32 %f, %f, 1;", "literal");
    refused("mov.u32 %zz, 1;", "undeclared name %zz");
    refused("bra NOWHERE;", "unknown label");
    refused("ld.global.u32 %a, %x;", "expected an address");
    refused("setp.ltu.s32 %p, %a, %b;", "unknown instruction");
    refused("cvt.s32.f32 %a, %f;", "needs .rni");
    refused("ld.global.bogus.u32 %a, [%x];", "unknown modifier");
    refused("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%a}, {%a}, {%a}, {%a};", "unknown");
    refused("ld.param.u64 %x, [nope];", "undeclared parameter");
    refused("ld.param.u64 %x, [pin+8];", "parameter pin has 8 bytes");
  }
}
