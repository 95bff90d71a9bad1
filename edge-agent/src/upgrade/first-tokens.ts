/**
 * What tells a working engine from one that talks nonsense fluently, without trusting the program that is asked: the likeliest
 * first token after each of a few prompts. Prompts are read by the model's own routing, so that λ, cache and history make no
 * difference to it; another release of llama.cpp may round differently, hence a share and not all.
 */

const PROMPTS = [
  'The capital of France is', 'Once upon a time there was a', 'def add(a, b):\n    return', 'In the year of our', 'Two plus two is',
  'The government has announced that the', 'He opened the door and', 'It is a truth universally',
] as const;
/** Chance agreement is the share of the commonest token, a few percent; rounding changes one in some hundred. */
const LEAST_AGREEMENT = 0.75;
const CALL_TIMEOUT_MS = 60_000;

/** One per prompt. Rejects where the agent does not answer with text. */
export async function firstTokens(httpUrl: string, apiKey: string | null, signal: AbortSignal): Promise<string[]> {
  const answers: string[] = [];
  for (const prompt of PROMPTS) {
    const response = await fetch(`${httpUrl}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...(apiKey === null ? {} : { authorization: `Bearer ${apiKey}` }) },
      body: JSON.stringify({ model: 'default', prompt, max_tokens: 1, temperature: 0 }),
      signal: AbortSignal.any([signal, AbortSignal.timeout(CALL_TIMEOUT_MS)]),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`a completion got HTTP ${response.status}: ${text.slice(0, 200)}`);
    const answer = (JSON.parse(text) as { choices?: { text?: unknown }[] }).choices?.[0]?.text;
    if (typeof answer !== 'string') throw new Error(`a completion has no text: ${text.slice(0, 200)}`);
    answers.push(answer);
  }
  return answers;
}

/** null: they say the same; else why not. */
export function disagreement(before: readonly string[], after: readonly string[]): string | null {
  const same = before.filter((answer, i) => answer === after[i]).length;
  if (same >= Math.ceil(before.length * LEAST_AGREEMENT)) return null;
  const at = before.findIndex((answer, i) => answer !== after[i]);
  return `it serves something else: of ${before.length} first tokens ${same} are those of the agent before it (for ${JSON.stringify(before[at])} it says ${JSON.stringify((after[at] ?? '').slice(0, 40))})`;
}
