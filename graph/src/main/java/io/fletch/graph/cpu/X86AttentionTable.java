package io.fletch.graph.cpu;

import io.fletch.graph.AttentionSpec;
import io.fletch.graph.KvCache;

/**
 * What is made once for a shape of attention and asked for in every call: emitted functions, sizes
 * of working memory. Looking one up takes no lock and allocates nothing; a model has very few
 * shapes, so they are compared one by one. Usable from any thread.
 *
 * @param <E> what there is for a shape
 */
final class X86AttentionTable<E extends X86AttentionTable.Entry> {
  /** Knows what it was made for. */
  interface Entry {
    /** Whether this is the one for a shape: what {@link Maker#make} does not use may differ. */
    boolean fits(AttentionSpec spec, KvCache.Type type, int heads);
  }

  /** Makes what there is for a shape. */
  @FunctionalInterface
  interface Maker<E> {
    /**
     * Called once for each shape.
     *
     * @param heads query heads that code takes at a time
     */
    E make(AttentionSpec spec, KvCache.Type type, int heads);
  }

  /** Entries that were added before this one are behind it and never change. */
  private record Node<E>(E entry, Node<E> next) {}

  private final Maker<E> maker;
  private volatile Node<E> latest;

  /** An empty table. */
  X86AttentionTable(Maker<E> maker) {
    this.maker = maker;
  }

  /** The entry of a shape, made now if there is none. */
  E get(AttentionSpec spec, KvCache.Type type, int heads) {
    E found = find(spec, type, heads);
    return found != null ? found : add(spec, type, heads);
  }

  private E find(AttentionSpec spec, KvCache.Type type, int heads) {
    for (Node<E> n = latest; n != null; n = n.next) {
      if (n.entry.fits(spec, type, heads)) {
        return n.entry;
      }
    }
    return null;
  }

  private synchronized E add(AttentionSpec spec, KvCache.Type type, int heads) {
    // Another thread may have added it since this one looked.
    E found = find(spec, type, heads);
    if (found == null) {
      found = maker.make(spec, type, heads);
      latest = new Node<>(found, latest);
    }
    return found;
  }
}
