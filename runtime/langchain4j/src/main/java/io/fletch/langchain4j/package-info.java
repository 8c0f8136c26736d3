/**
 * Adapters for LangChain4j: a Fletch model as {@code ChatModel} and {@code StreamingChatModel}, in
 * the process of the application.
 */
package io.fletch.langchain4j;
