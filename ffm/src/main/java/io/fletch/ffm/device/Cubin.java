package io.fletch.ffm.device;

import io.fletch.ffm.NativeException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/** Whether bytes look like a whole ELF image, which is all that the driver would trust blindly. */
final class Cubin {
  private static final int HEADER = 64;

  private Cubin() {}

  static void check(byte[] image) {
    ByteBuffer elf = ByteBuffer.wrap(image).order(ByteOrder.LITTLE_ENDIAN);
    if (image.length < HEADER || elf.getInt(0) != 0x464c457f || image[4] != 2) {
      throw new NativeException(
          "machine code of a GPU module: expected=a 64-bit ELF image, actual="
              + image.length
              + " bytes of something else");
    }
    long end = sections(elf, elf.getLong(40), elf.getShort(58), elf.getShort(60));
    end = Math.max(end, sections(elf, elf.getLong(32), elf.getShort(54), elf.getShort(56)));
    if (end > image.length) {
      throw new NativeException(
          "machine code of a GPU module is cut off: expected=" + end + " actual=" + image.length);
    }
  }

  private static long sections(ByteBuffer elf, long offset, short size, short count) {
    long bytes = (size & 0xffffL) * (count & 0xffffL);
    return offset < 0 || offset > Long.MAX_VALUE - bytes ? Long.MAX_VALUE : offset + bytes;
  }
}
