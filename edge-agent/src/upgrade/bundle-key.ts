/**
 * The public key that releases of the agent have to be signed with. The file that whoever installed the agent has named counts
 * first; else the key that the fleet told at enrolment, pinned in the state folder. What a coordinator tells after that changes
 * nothing, so that one in other hands brings no releases of its own.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Logger, parsePublicKey, type PublicKey } from '@moefleet/runtime';
import type { StateFolder } from '../control/state-folder';

const PINNED = 'bundle-key.pub';

export class BundleKey {
  /** `file`: null where none was named */
  constructor(private readonly folder: StateFolder, private readonly file: string | null, private readonly log: Logger) {}

  /** `text`: as an enrolment answers; empty where the fleet has none. Keeps the first. */
  pin(text: string): void {
    if (text === '') return;
    try {
      const told = parsePublicKey(text);
      const pinned = this.folder.read(PINNED);
      if (pinned === null) {
        this.folder.write(PINNED, `untrusted comment: moefleet bundle key ${told.keyId}\n${told.text}\n`);
        this.log.info({ keyId: told.keyId }, 'bundle key pinned');
      } else if (parsePublicKey(pinned).text !== told.text) {
        this.log.warn({ told: told.keyId, pinned: parsePublicKey(pinned).keyId, file: join(this.folder.path, PINNED) }, 'the coordinator tells another bundle key than the pinned one, which stays; to change it: moefleet deploy ssh --bundle-key');
      }
    } catch (error) {
      this.log.error({ reason: (error as Error).message }, 'the bundle key cannot be pinned');
    }
  }

  /** Throws where there is none, with the place it is looked for, or SignatureError for what is no key. */
  read(): PublicKey {
    const path = this.file ?? join(this.folder.path, PINNED);
    let text: string;
    try {
      text = readFileSync(path, 'utf8');
    } catch (cause) {
      throw new Error(`no key is pinned that releases would be signed with (${path}); put the fleet's bundle-key.pub there, or bring it with: moefleet deploy ssh --bundle-key`, { cause });
    }
    return parsePublicKey(text);
  }
}
