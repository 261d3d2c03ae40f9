/** The service: requests, and its errors exactly as it says them. */

/** @typedef {{message: string, type: string, param: string | null, code: string}} ErrorBody */

/** An error that the API answered, or the reason why there is no answer. */
export class ApiError extends Error {
  /**
   * @param {Partial<ErrorBody> & {message: string}} body
   * @param {{status?: number, requestId?: string | null, retryAfter?: number | null}} [answer]
   */
  constructor(body, { status, requestId, retryAfter } = {}) {
    super(body.message);
    this.code = body.code ?? null;
    this.param = body.param ?? null;
    this.status = status ?? null;
    this.requestId = requestId ?? null;
    this.retryAfter = retryAfter ?? null; // seconds; only where trying again can help
  }
}

/**
 * The scores of items, one request: a bad item carries its error, the others their numbers.
 * @param {object[]} items
 * @param {AbortSignal} signal
 * @returns {Promise<{items: object[], model: string, model_version: string, requestId: string | null}>}
 */
export function score(items, signal) {
  const body = { items, include: ["logprobs", "returns", "tokens"], gamma: 1, on_error: "item" };
  return ask("v1/rewards", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

/** The served pair. */
export function servedPair() {
  return ask("v1/pair");
}

/** Examples of the demo; none where another pair is served. */
export function examples() {
  return ask("playground/examples");
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError({
      message: "The service cannot be reached: it is not running, or the network is down.",
    });
  }
  const requestId = answer.headers.get("X-Request-Id");
  const value = await answer.json().catch((error) => {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    return null;
  });
  if (answer.ok && value !== null) return Array.isArray(value) ? value : { ...value, requestId };
  const body = value?.error ?? {
    message:
      "The answer is not what this service says: something between it and this page may have changed it.",
  };
  const retryAfter =
    answer.status === 503 || answer.status === 429 ? Number(answer.headers.get("Retry-After")) : 0;
  throw new ApiError(body, {
    status: answer.status,
    requestId,
    retryAfter: retryAfter > 0 ? retryAfter : null,
  });
}
