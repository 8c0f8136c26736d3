/**
 * Adapters for LangChain4j: Fletch models as {@code ChatModel}, {@code StreamingChatModel} and
 * {@code EmbeddingModel}, in the process of the application.
 */
package io.fletch.langchain4j;
