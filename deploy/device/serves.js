// Runs on the device, by the bundle's own Node: waits until the agent has loaded its model, has it generate one token, and
// prints what it saw as one line of JSON. Arguments: base address, patience in ms; `apiKey` is set before, empty for none.
const [base, patienceMs] = [process.argv[2], Number(process.argv[3])];
const beganMs = Date.now();
const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
const ask = async (path, options) => {
  const response = await fetch(base + path, { ...options, signal: AbortSignal.timeout(Math.max(1000, patienceMs - (Date.now() - beganMs))) });
  const body = await response.json().catch(() => ({}));
  return { ok: response.ok, status: response.status, body };
};
const seen = { healthy: false, reason: 'nothing listens there', connected: false, served: false, healthyMs: null, servedMs: null };

(async () => {
  while (Date.now() - beganMs < patienceMs) {
    try {
      const { ok, body } = await ask('/healthz');
      seen.connected = Boolean(body.connected);
      seen.reason = body.reason ?? '';
      if (ok) {
        seen.healthy = true;
        seen.healthyMs = Date.now() - beganMs;
        break;
      }
    } catch (error) {
      seen.reason = error.cause ? `${error.message}: ${error.cause.message}` : error.message;
    }
    await pause();
  }
  if (seen.healthy) {
    try {
      const { ok, status, body } = await ask('/v1/completions', {
        method: 'POST', headers: { 'content-type': 'application/json', ...(globalThis.apiKey ? { authorization: `Bearer ${globalThis.apiKey}` } : {}) },
        body: JSON.stringify({ model: 'default', prompt: 'The', max_tokens: 1, temperature: 0 }),
      });
      seen.served = ok && body.usage?.completion_tokens >= 1;
      seen.servedMs = Date.now() - beganMs;
      if (!seen.served) seen.reason = `a completion was answered with ${status}: ${JSON.stringify(body).slice(0, 300)}`;
    } catch (error) {
      seen.reason = error.message;
    }
  }
  process.stdout.write(`${JSON.stringify(seen)}\n`);
})();
