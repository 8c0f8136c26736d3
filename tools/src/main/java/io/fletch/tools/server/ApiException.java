package io.fletch.tools.server;

import java.util.LinkedHashMap;
import java.util.Map;

/** A request that is answered with an error, in the shape of OpenAI's errors. */
final class ApiException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private final int status;
  private final String type;
  private final String code;
  private final String param;

  private ApiException(int status, String type, String code, String param, String message) {
    super(message);
    this.status = status;
    this.type = type;
    this.code = code;
    this.param = param;
  }

  /** A request that is wrong. */
  static ApiException invalid(String param, String message) {
    return new ApiException(400, "invalid_request_error", null, param, message);
  }

  /** An error that is of a kind, which a code names. */
  static ApiException of(int status, String code, String message) {
    return of(status, code, null, message);
  }

  /**
   * An error of a kind.
   *
   * @param param what in the request it is about; null for nothing in particular
   */
  static ApiException of(int status, String code, String param, String message) {
    String type =
        switch (status) {
          case 401 -> "authentication_error";
          case 403 -> "permission_error";
          case 429 -> "rate_limit_error";
          case 500, 503 -> "server_error";
          default -> "invalid_request_error";
        };
    return new ApiException(status, type, code, param, message);
  }

  int status() {
    return status;
  }

  Map<String, Object> body() {
    Map<String, Object> error = new LinkedHashMap<>();
    error.put("message", getMessage());
    error.put("type", type);
    error.put("param", param);
    error.put("code", code);
    return Map.of("error", error);
  }
}
