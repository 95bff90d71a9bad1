/**
 * What a warm start could save at most, for whoever knew the future: misses of the first tokens with the cache filled at the
 * start with the experts used first and Belady's evictions from there on, by whole events. No list and no policy does
 * better, so that a share of what a list saves can be told of what can be saved. Choices that do not depend on the cache only,
 * i.e. λ 0.
 */

/** Events of one layer: arrays of expert ids. Misses as the engine counts them: distinct absent experts of the prompt's, slots of the rest. */
export function leastMisses(events, promptEvents, experts, capacity) {
  const nextUse = nextUses(events, experts);
  const upcoming = new Array(experts).fill(Infinity);
  for (let t = events.length - 1; t >= 0; t -= 1) for (const expert of events[t]) upcoming[expert] = t;
  // Of equal starts the one whose members are used first: whatever else is fetched at its first use, which is one miss either way.
  const first = [...upcoming.keys()].filter((expert) => upcoming[expert] < Infinity).sort((a, b) => upcoming[a] - upcoming[b]);
  const members = new Set(first.slice(0, capacity));
  const begun = new Set(members);
  const inPrompt = new Set();
  let decode = 0;
  for (const [t, ids] of events.entries()) {
    for (const [slot, expert] of ids.entries()) {
      if (t < promptEvents) inPrompt.add(expert);
      else if (!members.has(expert)) decode += 1;
      upcoming[expert] = nextUse[t][slot];
    }
    for (const expert of ids) members.add(expert);
    while (members.size > capacity) {
      let victim = -1;
      for (const expert of members) if (!ids.includes(expert) && (victim < 0 || upcoming[expert] > upcoming[victim])) victim = expert;
      members.delete(victim);
    }
  }
  return [...inPrompt].filter((expert) => !begun.has(expert)).length + decode;
}

function nextUses(events, experts) {
  const upcoming = new Array(experts).fill(Infinity);
  const next = new Array(events.length);
  for (let t = events.length - 1; t >= 0; t -= 1) {
    next[t] = events[t].map((expert) => upcoming[expert]);
    for (const expert of events[t]) upcoming[expert] = t;
  }
  return next;
}

/** Events of each layer from an evaluation's record of choices: tokens x layers x topK, -1 where nothing was computed. */
export function eventsOf(routes, layers, tokens, topK) {
  return Array.from({ length: layers }, (_, layer) => Array.from({ length: tokens }, (__, t) => {
    const at = (t * layers + layer) * topK;
    return [...routes.subarray(at, at + topK)].filter((expert) => expert >= 0);
  }));
}
