package io.fletch.ffm.device;

import java.util.concurrent.atomic.AtomicBoolean;

/**
 * Something of a context that is closed exactly once, by whoever made it. Closing is safe from any
 * thread; that nobody uses it meanwhile is the owner's business.
 */
public abstract sealed class CudaResource implements AutoCloseable
    permits CudaStream,
        CudaEvent,
        DeviceMemory,
        PinnedMemory,
        CudaModule,
        CudaGraph,
        CudaGraphExec,
        CudaLaunch {
  private final CudaContext context;
  private final AtomicBoolean closed = new AtomicBoolean();

  CudaResource(CudaContext context) {
    this.context = context;
  }

  /** The context that it was made from. */
  public final CudaContext context() {
    return context;
  }

  /** Whether {@link #close()} was called. */
  public final boolean isClosed() {
    return closed.get();
  }

  /**
   * Gives it back to the driver.
   *
   * @throws IllegalStateException if already closed
   * @throws CudaException if the driver refuses; the context tries once more when it is closed
   */
  @Override
  public final void close() {
    if (!closed.compareAndSet(false, true)) {
      throw new IllegalStateException("already closed: " + this);
    }
    releaseNow();
  }

  /** Marks it closed without the check for a second close; for the context. */
  final void abandon() {
    closed.set(true);
    releaseNow();
  }

  private void releaseNow() {
    context.enter();
    release();
    context.forget(this);
  }

  /** Makes the context current and refuses use after close. */
  final void use() {
    if (closed.get()) {
      throw new IllegalStateException("used after close: " + this);
    }
    context.enter();
  }

  /** The driver call that gives it back; the context is current. */
  abstract void release();
}
