package io.fletch.runtime.tokenizer;

import java.util.Arrays;
import java.util.List;

/**
 * Finds tokens that are written in a text as they are: control tokens and those a model was given
 * after training. Leftmost first, of those that begin at one place the longest. Immutable.
 */
final class AddedTokens {
  /**
   * A token.
   *
   * @param singleWord only where no letter or digit touches it
   * @param stripLeft takes the white space before it
   * @param stripRight takes the white space after it
   */
  record Added(int id, String text, boolean singleWord, boolean stripLeft, boolean stripRight) {}

  /** Where a token was found: the text that it replaces. */
  record Hit(int from, int to, int id) {}

  private static final class Node {
    char[] keys = new char[0];
    Node[] children = new Node[0];
    Added token;

    Node child(char key) {
      int at = Arrays.binarySearch(keys, key);
      return at < 0 ? null : children[at];
    }

    Node grow(char key) {
      int at = Arrays.binarySearch(keys, key);
      if (at >= 0) {
        return children[at];
      }
      int place = -at - 1;
      char[] moreKeys = Arrays.copyOf(keys, keys.length + 1);
      Node[] moreChildren = Arrays.copyOf(children, keys.length + 1);
      System.arraycopy(keys, place, moreKeys, place + 1, keys.length - place);
      System.arraycopy(children, place, moreChildren, place + 1, keys.length - place);
      moreKeys[place] = key;
      moreChildren[place] = new Node();
      keys = moreKeys;
      children = moreChildren;
      return moreChildren[place];
    }
  }

  private final Node root = new Node();

  /** The first character if all tokens share it, so that a search is one scan; else -1. */
  private final int commonFirst;

  AddedTokens(List<Added> tokens) {
    for (Added token : tokens) {
      Node node = root;
      for (int i = 0; i < token.text().length(); i++) {
        node = node.grow(token.text().charAt(i));
      }
      if (node != root && node.token == null) {
        node.token = token;
      }
    }
    commonFirst = root.keys.length == 1 ? root.keys[0] : -1;
  }

  boolean isEmpty() {
    return root.keys.length == 0;
  }

  /** The first token in {@code text[from, ...)}, or null. */
  Hit find(String text, int from) {
    int at = from;
    while (at < text.length()) {
      if (commonFirst >= 0) {
        at = text.indexOf(commonFirst, at);
        if (at < 0) {
          return null;
        }
      }
      Added token = longest(text, at);
      if (token == null) {
        at++;
        continue;
      }
      int end = at + token.text().length();
      if (token.singleWord() && (touchesWordBefore(text, at) || touchesWordAfter(text, end))) {
        at = end;
        continue;
      }
      int start = at;
      while (token.stripLeft() && start > from && CharSet.isSpace(text.charAt(start - 1))) {
        start--;
      }
      while (token.stripRight() && end < text.length() && CharSet.isSpace(text.charAt(end))) {
        end++;
      }
      return new Hit(start, end, token.id());
    }
    return null;
  }

  private Added longest(String text, int from) {
    Node node = root;
    Added best = null;
    for (int i = from; i < text.length(); i++) {
      node = node.child(text.charAt(i));
      if (node == null) {
        break;
      }
      if (node.token != null) {
        best = node.token;
      }
    }
    return best;
  }

  private static boolean touchesWordBefore(String text, int at) {
    return at > 0 && CharSet.isWord(text.codePointBefore(at));
  }

  private static boolean touchesWordAfter(String text, int at) {
    return at < text.length() && CharSet.isWord(text.codePointAt(at));
  }
}
