/**
 * Calls of one script that are made in the same turn of the event loop travel as one: a change for thousands of devices,
 * or the reports of thousands, otherwise spend more on commands than on what they do. Each call has its own keys,
 * arguments and answer, and fails alone. Not for a Redis Cluster, where one script sees one slot.
 */
import { createHash } from 'node:crypto';
import { Command, type Redis, ReplyError } from 'ioredis';
import type { Script } from './scripts';

export type ScriptArgument = string | number | bigint | Buffer;

/** `of`: the keys, or for a script of one device what its keys begin with. */
interface Call { of: readonly string[] | string; args: readonly ScriptArgument[]; resolve(answer: unknown): void; reject(error: unknown): void }

/** Redis serves nobody else meanwhile; each takes some 10 µs. */
const MOST_TOGETHER = 128;

/**
 * Runs a script on many sets of keys and arguments. They come packed into one argument, as a command of thousands costs both
 * sides more than what it does; that keys are not named as such matters to a Redis Cluster alone. Of a device what
 * they begin with is enough. An argument that is \`false\` is that of the call before.
 * in:  ARGV MessagePack of {keys or their beginning, arguments} per call
 * out: the answer per call, in place of which an error may stand. A Redis that has become a replica fails them all.
 */
function manyTimes(script: Script): string {
  return `
    local function once(KEYS, ARGV)${script.lua}
    end
    local NAMES = {${(script.device ?? []).map((name) => `'${name}'`).join(', ')}}
    local function keysOf(of)
      if type(of) == 'table' then return of end
      local keys = {}
      for at, name in ipairs(NAMES) do keys[at] = of .. name end
      return keys
    end
    local answers, before = {}, {}
    for at, call in ipairs(cmsgpack.unpack(ARGV[1])) do
      local args = call[2]
      for i = 1, #args do if args[i] == false then args[i] = before[i] end end
      before = args
      local fine, answer = pcall(once, keysOf(call[1]), args)
      if not fine then
        answer = type(answer) == 'table' and answer or redis.error_reply(tostring(answer))
        if string.find(answer.err or '', '^READONLY') then return answer end
      end
      answers[at] = answer == nil and false or answer
    end
    return answers`;
}

/** Lua that Redis is sent once, and then named by its digest. */
class SentScript {
  private readonly sha: string;

  constructor(private readonly lua: string) {
    this.sha = createHash('sha1').update(lua).digest('hex');
  }

  async run(client: Redis, keys: readonly string[], args: readonly ScriptArgument[]): Promise<unknown> {
    const given = [keys.length, ...keys, ...args.map((arg) => (typeof arg === 'bigint' ? String(arg) : arg))];
    try {
      return await client.sendCommand(new Command('evalsha', [this.sha, ...given]));
    } catch (error) {
      if (!(error instanceof Error && error.message.startsWith('NOSCRIPT'))) throw error;
      return await client.sendCommand(new Command('eval', [this.lua, ...given]));
    }
  }
}

/** As Redis' Lua reads it. Numbers go as their digits, which is how arguments of a script come. */
function pack(calls: readonly Pick<Call, 'of' | 'args'>[]): Buffer {
  // One string of a character per byte, made into bytes at once: a write per argument would cost several times as much.
  let packed = arrayHead(calls.length);
  let before: readonly ScriptArgument[] = [];
  for (const { of, args } of calls) {
    packed += '\x92';
    if (typeof of === 'string') packed += packedBytes(of);
    else packed += arrayHead(of.length) + of.map(packedBytes).join('');
    packed += arrayHead(args.length);
    for (let at = 0; at < args.length; at += 1) packed += args[at] === before[at] ? SAME : packedBytes(args[at]!);
    before = args;
  }
  return Buffer.from(packed, 'latin1');
}

/** MessagePack's `false`: no argument is one. */
const SAME = '\xc2';

function arrayHead(length: number): string {
  return length < 16 ? String.fromCharCode(0x90 | length) : String.fromCharCode(0xdc, length >> 8, length & 0xff);
}

function packedBytes(value: ScriptArgument): string {
  const bytes = typeof value === 'string' && ASCII.test(value) ? value : bytesOf(value).toString('latin1');
  const { length } = bytes;
  if (length < 32) return String.fromCharCode(0xa0 | length) + bytes;
  if (length < 0x10000) return String.fromCharCode(0xda, length >> 8, length & 0xff) + bytes;
  return String.fromCharCode(0xdb, length >>> 24, (length >> 16) & 0xff, (length >> 8) & 0xff, length & 0xff) + bytes;
}

const ASCII = /^[\x00-\x7f]*$/;

function bytesOf(value: ScriptArgument): Buffer {
  return Buffer.isBuffer(value) ? value : Buffer.from(String(value));
}

/** As named in full. */
export function keysOf(script: Script, of: readonly string[] | string): readonly string[] {
  return typeof of === 'string' ? script.device!.map((what) => of + what) : of;
}

export class ScriptBatch {
  private waiting: Call[] = [];
  private readonly once: SentScript;
  private readonly many: SentScript;

  /** `onAnswer` is told how long each command took; `failure` makes of what a call failed with what its caller is told. */
  constructor(private readonly script: Script, private readonly client: Redis, private readonly onAnswer: (ms: number) => void, private readonly failure: (key: string, error: unknown) => Error) {
    this.once = new SentScript(script.lua);
    this.many = new SentScript(manyTimes(script));
  }

  /** `of`: the keys, or what those of the device begin with. */
  call(of: readonly string[] | string, args: readonly ScriptArgument[]): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.waiting.push({ of, args, resolve, reject }) === 1) setImmediate(() => this.flush());
    });
  }

  private flush(): void {
    const calls = this.waiting;
    this.waiting = [];
    for (let at = 0; at < calls.length; at += MOST_TOGETHER) this.sendTogether(calls.slice(at, at + MOST_TOGETHER));
  }

  private sendTogether(calls: readonly Call[]): void {
    if (calls.length === 1) {
      const { of, args, resolve } = calls[0]!;
      this.timed(this.once.run(this.client, keysOf(this.script, of), args)).then(resolve, (error: unknown) => this.fail(calls[0]!, error));
      return;
    }
    this.timed(this.many.run(this.client, [], [pack(calls)])).then(
      (answers) => { for (const [at, answer] of (answers as unknown[]).entries()) this.settle(calls[at]!, answer); },
      (error: unknown) => { for (const call of calls) this.fail(call, error); },
    );
  }

  private async timed<T>(answer: Promise<T>): Promise<T> {
    const beganMs = performance.now();
    try {
      return await answer;
    } finally {
      this.onAnswer(performance.now() - beganMs);
    }
  }

  private settle(call: Call, answer: unknown): void {
    if (answer instanceof ReplyError) this.fail(call, answer);
    else call.resolve(answer);
  }

  private fail({ of, reject }: Call, error: unknown): void {
    reject(this.failure(keysOf(this.script, of)[0]!, error));
  }
}
