package io.fletch.tools.server;

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.ReentrantLock;

/**
 * The response to a request that takes its time, whose client is asked meanwhile whether it is
 * still there. The JDK's server shows no end of a connection before something is written to it, so
 * something is written that means nothing: white space in front of JSON (RFC 8259, section 2), a
 * comment in a stream of events. A client that has closed its connection refuses the write, or at
 * the latest the next one, and the work for it is cancelled.
 *
 * <p>A response within the patience is written whole, with its length and any status. The first
 * sign of patience sends status 200 and begins a body in chunks; what fails after that can be told
 * only by breaking the connection off.
 *
 * <p>One thread writes the response; signs come from others.
 */
final class WatchedResponse implements AutoCloseable {
  /** How a response looks to its client. */
  enum Form {
    /** One JSON object, on one line also with what stands before it. */
    JSON("application/json", " "),
    /** Server-sent events. */
    EVENTS("text/event-stream; charset=utf-8", ": \n\n");

    private final String type;
    private final byte[] sign;

    Form(String type, String sign) {
      this.type = type;
      this.sign = sign.getBytes(StandardCharsets.US_ASCII);
    }
  }

  /**
   * From the first sign to the second: the first write to a closed connection succeeds, and only
   * the answer to it breaks the connection.
   */
  private static final long SECOND_SIGN_NANOS = TimeUnit.MILLISECONDS.toNanos(100);

  private final HttpExchange exchange;
  private final Form form;
  private final ScheduledExecutorService clock;
  private final Executor threads;
  private final long patience;
  private final ReentrantLock lock = new ReentrantLock();

  // All below belong to who holds the lock.

  /** When the client heard something last, or asked. */
  private long heard = System.nanoTime();

  private int signs;
  private Runnable whenGone;
  private ScheduledFuture<?> next;
  private IOException failure;
  private boolean isBegun;
  private boolean isClosed;

  /**
   * A response of which nothing is sent yet.
   *
   * @param clock says when it is time, and does no more
   * @param threads write signs, which a client that does not read can block
   * @param patience from the request to the first sign, and between two
   */
  WatchedResponse(
      HttpExchange exchange,
      Form form,
      ScheduledExecutorService clock,
      Executor threads,
      Duration patience) {
    this.exchange = exchange;
    this.form = form;
    this.clock = clock;
    this.threads = threads;
    this.patience = patience.toNanos();
  }

  /**
   * Watches the client from now on: the request is known to be valid, and can be told so.
   *
   * @param gone cancels the work, from another thread, at most once and perhaps at once; replaces
   *     that of the work before
   */
  void watch(Runnable gone) throws IOException {
    lock.lock();
    try {
      check();
      whenGone = gone;
      if (next == null) {
        schedule(Math.max(0, patience - (System.nanoTime() - heard)));
      }
    } finally {
      lock.unlock();
    }
  }

  private void schedule(long nanos) {
    try {
      next = clock.schedule(() -> threads.execute(this::sign), nanos, TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException _) {
      // The server is closing, which cancels all work anyway.
    }
  }

  private void sign() {
    Runnable cancel = null;
    lock.lock();
    try {
      if (isClosed || failure != null) {
        return;
      }
      long since = System.nanoTime() - heard;
      if (signs == 1 || since >= patience) {
        signs++;
        begin();
        put(form.sign);
        schedule(signs == 1 ? Math.min(SECOND_SIGN_NANOS, patience) : patience);
      } else {
        schedule(patience - since);
      }
    } catch (IOException e) {
      failure = e;
      cancel = whenGone;
    } finally {
      lock.unlock();
    }
    if (cancel != null) {
      cancel.run();
    }
  }

  /** Sends status and headers. */
  private void begin() throws IOException {
    if (isBegun) {
      return;
    }
    isBegun = true;
    Headers head = exchange.getResponseHeaders();
    head.set("Content-Type", form.type);
    if (form == Form.EVENTS) {
      head.set("Cache-Control", "no-cache");
    }
    exchange.sendResponseHeaders(200, 0);
  }

  private void put(byte[]... parts) throws IOException {
    OutputStream out = exchange.getResponseBody();
    for (byte[] part : parts) {
      out.write(part);
    }
    out.flush();
    heard = System.nanoTime();
  }

  /**
   * Writes and sends a part of the body.
   *
   * @throws IOException if the client is gone
   */
  void write(byte[]... parts) throws IOException {
    lock.lock();
    try {
      check();
      begin();
      put(parts);
    } finally {
      lock.unlock();
    }
  }

  /** Sends something that means nothing. */
  void writeSign() throws IOException {
    write(form.sign);
  }

  /**
   * Checks that no sign has failed. Work that {@link #watch} has cancelled ends here.
   *
   * @throws IOException if the client is gone
   */
  void check() throws IOException {
    lock.lock();
    try {
      if (failure != null) {
        throw new IOException("the client has gone: " + failure.getMessage(), failure);
      }
    } finally {
      lock.unlock();
    }
  }

  /** Whether status 200 is sent. */
  boolean isBegun() {
    lock.lock();
    try {
      return isBegun;
    } finally {
      lock.unlock();
    }
  }

  /**
   * Ends the response.
   *
   * @param rest of the body, or all of it
   * @throws IOException if the client is gone
   */
  void finish(byte[] rest) throws IOException {
    lock.lock();
    try {
      check();
      if (isBegun) {
        put(rest);
      } else {
        isBegun = true;
        exchange.getResponseHeaders().set("Content-Type", form.type);
        exchange.sendResponseHeaders(200, rest.length);
        exchange.getResponseBody().write(rest);
      }
      stop();
      exchange.getResponseBody().close();
    } finally {
      lock.unlock();
    }
  }

  private void stop() {
    isClosed = true;
    if (next != null) {
      next.cancel(false);
    }
  }

  /** Watches no more. What is not {@linkplain #finish finished} stays as it is. */
  @Override
  public void close() {
    lock.lock();
    try {
      stop();
    } finally {
      lock.unlock();
    }
  }
}
