package io.fletch.sampling;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A grammar over the tokens of one vocabulary: from it come the masks of any number of answers.
 *
 * <p>A state is the set of all stacks of a pushdown automaton that are possible behind a text; a
 * stack is a chain of positions that are to be continued. States are interned, their transitions by
 * bytes and their token masks are computed when first asked for and kept, so text that repeats (the
 * inside of a string, the next element of an array) costs a look-up. A mask is computed by one walk
 * over the vocabulary in the order of its bytes, leaving out all tokens that share a beginning
 * which is dead. It is exact: it holds a token if and only if some text of the grammar begins with
 * what there is and the token's bytes.
 *
 * <p>Thread-safe; kept states are dropped when they become many.
 */
public final class GrammarTokens {
  /** Kept states; each may have a mask and a table of 256 references. */
  private static final int MOST_STATES = 8192;

  /** Stacks of one state; more only come from grammars of pathological ambiguity. */
  private static final int MOST_STACKS = 20_000;

  /** What is to be continued: a position, and behind it the rest. */
  private record Stack(int position, Stack rest, int id) {}

  private record StackKey(int position, int rest) {}

  private static final class State {
    final Stack[] stacks;
    final boolean accepts;
    final int generation;
    final State[] next = new State[256];
    long[] mask;

    State(Stack[] stacks, boolean accepts, int generation) {
      this.stacks = stacks;
      this.accepts = accepts;
      this.generation = generation;
    }

    boolean isDead() {
      return stacks.length == 0 && !accepts;
    }
  }

  private static final State DEAD = new State(new Stack[0], false, -1);

  private final GrammarRules rules;
  private final byte[][] tokens;
  private final int[] order;
  private final int[] common;
  private final int words;
  private final int[] ends;
  private final Map<StackKey, Stack> stacks = new HashMap<>();
  private final Map<List<Integer>, State> states = new HashMap<>();
  private final State first;
  private final int longest;
  private int generation;
  private int stackIds;

  /**
   * Makes it.
   *
   * @param tokens the bytes of every id; empty for those that are not text, which are never allowed
   * @param ends ids that end an answer, allowed where the text is one of the grammar
   */
  public GrammarTokens(Grammar grammar, byte[][] tokens, int[] ends) {
    this.rules = grammar.rules();
    this.tokens = tokens.clone();
    this.ends = ends.clone();
    words = (tokens.length + 63) >> 6;
    boolean[] isEnd = new boolean[tokens.length];
    for (int id : ends) {
      if (id >= 0 && id < tokens.length) {
        isEnd[id] = true;
      }
    }
    List<Integer> ids = new ArrayList<>();
    int most = 0;
    for (int i = 0; i < tokens.length; i++) {
      if (tokens[i].length > 0 && !isEnd[i]) {
        ids.add(i);
        most = Math.max(most, tokens[i].length);
      }
    }
    longest = most;
    ids.sort(Comparator.comparing((Integer i) -> this.tokens[i], Arrays::compareUnsigned));
    order = ids.stream().mapToInt(Integer::intValue).toArray();
    common = new int[order.length];
    for (int i = 1; i < order.length; i++) {
      int n = Arrays.mismatch(tokens[order[i - 1]], tokens[order[i]]);
      common[i] = n < 0 ? tokens[order[i]].length : n;
    }
    Expansion expansion = new Expansion();
    for (int start : rules.starts(rules.root())) {
      expansion.add(start, null);
    }
    first = expansion.state();
  }

  /** The mask of a new answer. Belongs to one thread. */
  public Mask newMask() {
    return new Mask();
  }

  /** Where one answer stands in the grammar. */
  public final class Mask implements TokenMask {
    private State state = first;
    private boolean ended;

    private Mask() {}

    @Override
    public long[] allowed() {
      synchronized (GrammarTokens.this) {
        if (ended) {
          long[] only = new long[words];
          allowEnds(only);
          return only;
        }
        state = current(state);
        return mask(state);
      }
    }

    @Override
    public boolean check(int token) {
      if (token < 0 || token >= words << 6) {
        return false;
      }
      return (allowed()[token >> 6] >>> token & 1) != 0;
    }

    @Override
    public void commit(int token) {
      for (int end : ends) {
        if (end == token) {
          ended = true;
          return;
        }
      }
      State s;
      synchronized (GrammarTokens.this) {
        s = current(state);
        for (byte b : tokens[token]) {
          s = step(s, b & 0xff);
        }
      }
      if (ended || tokens[token].length == 0 || s.isDead()) {
        throw new IllegalArgumentException("the grammar does not allow token " + token);
      }
      state = s;
    }

    /** Whether the text is one of the grammar. */
    public boolean isComplete() {
      return state.accepts;
    }

    /** Whether nothing can follow: the answer ends here. */
    public boolean isFinished() {
      return ended || state.accepts && state.stacks.length == 0;
    }
  }

  /** The same state among those that are kept now. */
  private State current(State state) {
    return state.generation == generation ? state : intern(state.stacks, state.accepts);
  }

  private void allowEnds(long[] mask) {
    for (int id : ends) {
      if (id >= 0 && id < tokens.length) {
        mask[id >> 6] |= 1L << id;
      }
    }
  }

  private long[] mask(State state) {
    if (state.mask != null) {
      return state.mask;
    }
    long[] mask = new long[words];
    State[] path = new State[longest + 1];
    path[0] = state;
    // Beginnings of this many bytes and more are dead.
    int dead = Integer.MAX_VALUE;
    int depth = 0;
    for (int i = 0; i < order.length; i++) {
      if (common[i] >= dead) {
        continue;
      }
      dead = Integer.MAX_VALUE;
      depth = Math.min(depth, common[i]);
      byte[] bytes = tokens[order[i]];
      while (depth < bytes.length) {
        State s = step(path[depth], bytes[depth] & 0xff);
        depth++;
        if (s.isDead()) {
          dead = depth;
          depth--;
          break;
        }
        path[depth] = s;
      }
      if (dead == Integer.MAX_VALUE) {
        mask[order[i] >> 6] |= 1L << order[i];
      }
    }
    if (state.accepts) {
      allowEnds(mask);
    }
    state.mask = mask;
    return mask;
  }

  private State step(State state, int octet) {
    State known = state.next[octet];
    if (known != null) {
      return known;
    }
    Expansion expansion = null;
    for (Stack s : state.stacks) {
      if (rules.accepts(s.position(), octet)) {
        if (expansion == null) {
          expansion = new Expansion();
        }
        expansion.add(s.position() + 1, s.rest());
      }
    }
    State out = expansion == null ? DEAD : expansion.state();
    state.next[octet] = out;
    return out;
  }

  private Stack stack(int position, Stack rest) {
    return stacks.computeIfAbsent(
        new StackKey(position, rest == null ? -1 : rest.id()),
        _ -> new Stack(position, rest, stackIds++));
  }

  private State intern(Stack[] all, boolean accepts) {
    List<Integer> key = new ArrayList<>(all.length + 1);
    key.add(accepts ? 1 : 0);
    for (Stack s : all) {
      key.add(s.id());
    }
    State known = states.get(key);
    if (known == null) {
      if (states.size() >= MOST_STATES) {
        // Stacks keep their numbers: states made before stay comparable. Those in use find their
        // way back through current().
        states.clear();
        stacks.clear();
        generation++;
      }
      known = new State(all, accepts, generation);
      states.put(key, known);
    }
    return known;
  }

  /** Follows references and ends until every stack has a byte set on top. */
  private final class Expansion {
    private final List<Stack> work = new ArrayList<>();
    private final Set<Integer> seen = new HashSet<>();
    private final List<Stack> tops = new ArrayList<>();
    private boolean accepts;

    void add(int position, Stack rest) {
      Stack s = stack(position, rest);
      if (seen.add(s.id())) {
        work.add(s);
      }
    }

    State state() {
      while (!work.isEmpty()) {
        Stack s = work.removeLast();
        int position = s.position();
        if (rules.isEnd(position)) {
          if (s.rest() == null) {
            accepts = true;
          } else {
            add(s.rest().position(), s.rest().rest());
          }
        } else if (rules.isReference(position)) {
          // Nothing behind the last reference of an alternative: it takes no room on the stack.
          Stack rest = rules.isEnd(position + 1) ? s.rest() : stack(position + 1, s.rest());
          for (int start : rules.starts(rules.reference(position))) {
            add(start, rest);
          }
        } else {
          tops.add(s);
          if (tops.size() > MOST_STACKS) {
            throw new SamplingException(
                "the grammar is too ambiguous: stacks expected<=" + MOST_STACKS);
          }
        }
      }
      tops.sort(Comparator.comparingInt(Stack::id));
      return intern(tops.toArray(Stack[]::new), accepts);
    }
  }
}
