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
        "mov.u32 %r, buffer; setp.ne.u32 %p, %t, 0; @%p ret; cp.async.ca.shared.global [%r], [%in],"
            + " 16; cp.async.commit_group;ld.shared.u32 %a, [%r];",
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

  @Test
  void racesForSharedMemory() {
    String store = "mov.u32 %r, buffer; shl.b32 %a, %t, 2; add.u32 %a, %a, %r;";
    String own = store + "and.b32 %b, %t, 15; shl.b32 %b, %b, 2; add.u32 %b, %b, %r;";
    LaunchConfig two = LaunchConfig.of(1, 64);
    // Warps, without a barrier: the second one reads what the first one wrote.
    String first = own + "setp.ge.u32 %p, %t, 16; @%p bra NO; st.shared.u32 [%b], %t; NO:";
    fault(first + "setp.lt.u32 %p, %t, 32; @%p bra END; ld.shared.u32 %a, [%b]; END:", two, "race");
    assertEquals(8, run(first + "bar.sync 0; ld.shared.u32 %a, [%b];", two).length);
    // Lanes of a warp: what they run in step today they need not tomorrow.
    fault(first + "ld.shared.u32 %a, [%r];", "race", "thread 1,0,0", "write of thread 0");
    assertEquals(8, run(first + "bar.warp.sync 0xffffffff; ld.shared.u32 %a, [%r];").length);
    // A read, then a write by another warp.
    String read = first + "bar.sync 0; ld.shared.u32 %a, [%r];";
    String write = "setp.ne.u32 %p, %t, 33; @%p bra END; st.shared.u32 [%r], %t; END:";
    fault(read + write, two, "race", "a read of warp");
    assertEquals(8, run(read + "bar.sync 0;" + write, two).length);
    // The same value from all lanes is no harm; different ones are.
    assertEquals(8, run("mov.u32 %r, buffer; mov.u32 %a, 7; st.shared.u32 [%r], %a;").length);
    fault("mov.u32 %r, buffer; st.shared.u32 [%r], %t;", "race", "thread 1,0,0");
    // Atomic and plain accesses need a barrier, atomic ones do not.
    String zero = "mov.u32 %r, buffer; mov.u32 %b, 0; st.shared.u32 [%r], %b;";
    String add = "atom.shared.add.u32 %a, [%r], 1;";
    fault(zero + add, "race");
    assertEquals(8, run(zero + "bar.sync 0;" + add + add, two).length);
    fault(zero + "bar.sync 0;" + add + "ld.shared.u32 %a, [%r];", two, "race");
    // A copy in the background is a write when it begins.
    String copy =
        "setp.ne.u32 %p, %t, 32; @%p bra END; cp.async.ca.shared.global [%r], [%in], 4;"
            + "cp.async.wait_all; END:";
    fault(read + copy, two, "race");
    assertEquals(8, run(read + "bar.sync 0;" + copy + "bar.sync 0;", two).length);
    fault(read + "bar.sync 0;" + copy + "ld.shared.u32 %a, [%r];", two, "race");
  }

  @Test
  void racesForGlobalMemory() {
    LaunchConfig blocks = LaunchConfig.of(2, 32);
    String mine = "mov.u32 %a, %ctaid.x; mad.wide.u32 %x, %a, 4, %out; setp.ne.u32 %p, %t, 0;";
    String other = "xor.b32 %b, %a, 1; mad.wide.u32 %x, %b, 4, %out;";
    String store = mine + "@%p bra NO; st.global.u32 [%x], %a; NO:";
    assertEquals(8, run(store, blocks).length);
    fault(store + other + "ld.global.u32 %r, [%x];", blocks, "race", "block");
    fault(mine + "@%p bra NO; st.global.u32 [%out], %a; NO:", blocks, "race", "block");
    fault(store + "ld.global.nc.u32 %r, [%x];", "by ld.global.nc what this launch writes");
    // Bytes of a word by different blocks, as the gates of rows are.
    String bytes = "mov.u32 %a, %ctaid.x; cvt.u64.u32 %x, %a; add.u64 %x, %x, %out;";
    String use = bytes + "ld.global.u8 %b, [%x]; bar.sync 0; st.global.u8 [%x], %a;";
    assertEquals(8, run(use, blocks).length);
    String sum = "atom.global.add.u32 %a, [%out], 1;";
    assertEquals(64, run(sum, blocks)[0]);
  }

  /**
   * Two blocks, each run by a worker, wait for each other and write a word: what one of them has
   * announced the other finds stored.
   */
  @Test
  void blocksMayWriteTheSame() {
    String words =
        "mov.u32 %a, %ctaid.x; setp.ge.u32 %p, %a, 2; @%p bra END;"
            + "setp.ne.u32 %p, %t, 0; @%p bra END; mov.u64 %x, %out; mov.u32 %a, 2; AGAIN:"
            + "atom.global.add.u32 %b, [%out], 1; WAIT: ld.volatile.global.u32 %b, [%out];"
            + "setp.lt.u32 %p, %b, %a; @%p bra WAIT;"
            + "add.u64 %x, %x, 4; st.global.u32 [%x], %a; add.u32 %a, %a, 2;"
            + "setp.le.u32 %p, %a, 400; @%p bra AGAIN; END:";
    int[] out =
        Bench.run(Bench.kernel(DECLARATIONS, words), LaunchConfig.of(4, 32), new int[8], 201);
    assertEquals(400, out[0]);
    assertEquals(400, out[200]);
  }

  @Test
  void launchesThatOverlap() {
    LaunchConfig one = LaunchConfig.of(1, 32).withProgrammatic(true);
    String wait = "griddepcontrol.launch_dependents; griddepcontrol.wait;";
    assertEquals(8, run(wait + "ld.global.u32 %a, [%in];", one).length);
    fault("griddepcontrol.launch_dependents;", one, "ends without griddepcontrol.wait");
    fault("mov.u32 %a, 1; st.global.u32 [%out], %a;" + wait, one, "writes before");
    // The second launch reads what the first one wrote.
    String add = "ld.global.u32 %a, [%out]; bar.sync 0; add.u32 %a, %a, 1;";
    String put = "setp.ne.u32 %p, %t, 0; @%p bra NO; st.global.u32 [%out], %a; NO:";
    assertEquals(1, run(wait + add + put, one)[0]);
    assertEquals(2, twice(wait + add + put)[0]);
    GpuFault f = assertThrows(GpuFault.class, () -> twice(add + wait + put));
    assertTrue(f.getMessage().contains("without griddepcontrol.wait"), f.getMessage());
    String constant = add.replace("ld.global", "ld.global.nc").replace("%out", "%x");
    String moved = "add.u64 %x, %out, 4;";
    String store = put.replace("[%out]", "[%out+4]").replace("NO", "NEXT");
    f = assertThrows(GpuFault.class, () -> twice(wait + moved + constant + put + store));
    assertTrue(f.getMessage().contains("ld.global.nc"), f.getMessage());
  }

  private static int[] run(String body, LaunchConfig config) {
    return Bench.run(Bench.kernel(DECLARATIONS, body), config, new int[8], 8);
  }

  private static int[] run(String body) {
    return run(body, LaunchConfig.of(1, 32));
  }

  private static int[] twice(String body) {
    LaunchConfig config = LaunchConfig.of(1, 32).withProgrammatic(true);
    return Bench.run(Bench.kernel(DECLARATIONS, body), config, new int[8], 8, 2);
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
