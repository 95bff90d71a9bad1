/**
 * Calls of one script that are made in the same turn of the event loop travel as one: a change for thousands of devices,
 * or the reports of thousands, otherwise spend more on commands than on what they do. Each call has its own keys,
 * arguments and answer, and fails alone. Not for a Redis Cluster, where one script sees one slot.
 */
import { ReplyError } from 'ioredis';
import type { Script } from './scripts';

export type ScriptArgument = string | number | bigint | Buffer;

interface Call { keys: readonly string[]; args: readonly ScriptArgument[]; resolve(answer: unknown): void; reject(error: unknown): void }

/** Redis serves nobody else meanwhile; each takes some 10 µs. */
const MOST_TOGETHER = 128;

/** Runs `script` on many sets of keys and arguments. */
export function manyTimes(script: Script): Script {
  return {
    name: `${script.name}Many`,
    keys: 'any',
    /*
     * in:  KEYS of all calls, one after the other; ARGV number of calls, then per call how many keys and arguments it has, and the arguments
     * out: the answer per call, in place of which an error may stand. A Redis that has become a replica fails them all.
     */
    lua: `
    local function once(KEYS, ARGV)${script.lua}
    end
    local answers, key, arg = {}, 0, 1
    for call = 1, tonumber(ARGV[1]) do
      local keys, args = {}, {}
      local keyCount, argCount = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
      for at = 1, keyCount do keys[at] = KEYS[key + at] end
      for at = 1, argCount do args[at] = ARGV[arg + 2 + at] end
      key = key + keyCount
      arg = arg + 2 + argCount
      local fine, answer = pcall(once, keys, args)
      if not fine then
        answer = type(answer) == 'table' and answer or redis.error_reply(tostring(answer))
        if string.find(answer.err or '', '^READONLY') then return answer end
      end
      answers[call] = answer == nil and false or answer
    end
    return answers`,
  };
}

export class ScriptBatch {
  private waiting: Call[] = [];
  private readonly many: Script;

  /** `send` runs a script as it is. */
  constructor(private readonly script: Script, private readonly send: (script: Script, keys: readonly string[], args: readonly ScriptArgument[]) => Promise<unknown>) {
    this.many = manyTimes(script);
  }

  call(keys: readonly string[], args: readonly ScriptArgument[]): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.waiting.push({ keys, args, resolve, reject }) === 1) setImmediate(() => this.flush());
    });
  }

  private flush(): void {
    const calls = this.waiting;
    this.waiting = [];
    for (let at = 0; at < calls.length; at += MOST_TOGETHER) this.sendTogether(calls.slice(at, at + MOST_TOGETHER));
  }

  private sendTogether(calls: readonly Call[]): void {
    if (calls.length === 1) {
      const { keys, args, resolve, reject } = calls[0]!;
      this.send(this.script, keys, args).then(resolve, reject);
      return;
    }
    const allKeys: string[] = [];
    const allArgs: ScriptArgument[] = [calls.length];
    for (const { keys, args } of calls) {
      allKeys.push(...keys);
      allArgs.push(keys.length, args.length, ...args);
    }
    this.send(this.many, allKeys, allArgs).then(
      (answers) => { for (const [at, answer] of (answers as unknown[]).entries()) settle(calls[at]!, answer); },
      (error: unknown) => { for (const { reject } of calls) reject(error); },
    );
  }
}

function settle({ resolve, reject }: Call, answer: unknown): void {
  if (answer instanceof ReplyError) reject(answer);
  else resolve(answer);
}
